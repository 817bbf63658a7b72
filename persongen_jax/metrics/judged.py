"""Base classes of metrics that share a judge."""

from ml_collections import ConfigDict

from persongen_jax.metrics.base import Known, Metric
from persongen_jax.metrics.judges import Judges, face_recogniser


class JudgedByClip(Metric):
    """Judged by ``config.clip``, which is ``self.clip``, a judges.ClipJudge."""

    judge_key = "clip"

    def __init__(self, config: ConfigDict, judges: Judges):
        self.clip, self.judge = judges.clip, config.clip

    def networks(self) -> tuple:
        return self.clip.clip.networks


class JudgedByFaceNet(Metric):
    """Judged by ``config.face_net``, which is ``self.faces``, a judges.FaceJudge."""

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
