"""Base classes of metrics that share a judge."""

import abc
from collections.abc import Sequence

import numpy as np
from ml_collections import ConfigDict

from persongen_jax.metrics.base import Generated, Known, Metric, Values
from persongen_jax.metrics.feature_judges import FeatureJudge
from persongen_jax.metrics.judges import Judges, face_recogniser


class JudgedByClip(Metric):
    """Judged by ``config.clip``, which is ``self.clip``, a feature_judges.ClipJudge."""

    judge_key = "clip"

    def __init__(self, config: ConfigDict, judges: Judges):
        self.clip, self.judge = judges.clip, config.clip

    def networks(self) -> tuple:
        return self.clip.networks()


class ComparedWithPictures(Metric):
    """The mean cosine of an image's embedding with those of its owner's real pictures, in -1..1.

    Every real picture counts, those that the method read as well (DreamBooth, arXiv 2208.12242,
    section 4.1). NaN for people without one, whom a printed line names. The fact "n_real" is the
    number of real pictures.
    """

    form = "{:.3f}"

    def __init__(self, config: ConfigDict, judges: Judges):
        self.encoder = self.open_judge(config, judges)
        self.judge = config[self.judge_key]

    @abc.abstractmethod
    def open_judge(self, config: ConfigDict, judges: Judges) -> FeatureJudge:
        """The encoder that ``judge_key`` names; NoJudge if it names none."""

    def networks(self) -> tuple:
        return self.encoder.networks()

    def prepare(self, known: Known) -> None:
        real = self.encoder.features_by_owner(known.people)
        for name, features in real.items():
            self._check(features, f"the real pictures of {name}")
        missed = [owner.name for owner in known.people.owners if owner.name not in real]
        if missed:
            print(f"{known.name}: no real picture of {', '.join(missed)}: left out of {self.title}")

    def __call__(self, generated: Generated, known: Known) -> Values:
        real = self.encoder.features_by_owner(known.people)
        features = np.asarray(self.encoder.features(generated), np.float64)
        self._check(features, "the generated images")
        owners = np.asarray(generated.owners, str)
        values = np.full(len(owners), np.nan)
        for name, pictures in real.items():
            rows = owners == name
            # The mean of the cosines is the product with the mean, as all are unit vectors.
            values[rows] = features[rows] @ pictures.mean(0, dtype=np.float64)
        return Values(values, facts={"n_real": sum(map(len, real.values()))})

    def _check(self, features, what):
        check_finite(self, features, what)


def check_finite(metric: Metric, features: np.ndarray, what: str) -> None:
    """ValueError if features [n, d] of ``what``, such as "the generated images", are not finite."""
    if bad := int((~np.isfinite(features).all(-1)).sum()):
        raise ValueError(
            f"{metric.title}: the embeddings of {bad} of {len(features)} of {what} are not "
            f"finite: the weights of {metric.judge} are damaged; fetch them again"
        )


class JudgedByLpips(Metric):
    """Judged by ``config.lpips``, which is ``self.lpips``, an embedders.lpips.PerceptualDistance.

    The value of an image is its mean distance to the other images of its owner, so that the mean of
    a person's images is that of the person's pairs; NaN where there is no other.
    """

    judge_key = "lpips"
    form = "{:.3f}"

    def __init__(self, config: ConfigDict, judges: Judges):
        self.lpips, self.judge = judges.lpips, config.lpips

    def networks(self) -> tuple:
        return self.lpips.networks

    def to_others(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """The mean distance [n] of each image, uint8 RGB [h, w, 3] of one size, to the others."""
        count = len(images)
        if count < 2:
            return np.full(count, np.nan)
        table = self.lpips.pairs(images)
        check_finite(self, table, "the generated images")
        return table.sum(1) / (count - 1)


class JudgedByFaceNet(Metric):
    """Judged by ``config.face_net``, which is ``self.faces``, a face_judge.FaceJudge."""

    judge_key = "face_net"

    def __init__(self, config: ConfigDict, judges: Judges):
        self.faces, self.judge = judges.faces, face_recogniser(config.face_net)

    def networks(self) -> tuple:
        return self.faces.embedder.networks


class JudgedByClassifier(Metric):
    """Judged by ``config.classifier``: ``self.attributes``, an attribute_judge.AttributeJudge."""

    judge_key = "classifier"

    def __init__(self, config: ConfigDict, judges: Judges):
        self.attributes, self.judge = judges.attributes, config.classifier

    def networks(self) -> tuple:
        return (self.attributes.weights,)

    def prepare(self, known: Known) -> None:
        self.attributes.check(known)
