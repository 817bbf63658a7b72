"""Judges that encode whole images: CLIP, CMMD's, FID's Inception, DINO. See judges.py."""

import abc
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from persongen_jax.features.of_images import KeptFeatures, Rows, text_of
from persongen_jax.metrics.base import Generated, People

if TYPE_CHECKING:
    from persongen_jax.metrics.clip_score import ClipScore
    from persongen_jax.metrics.dino_embedder import DinoEmbedder
    from persongen_jax.metrics.embedders.inception import InceptionEmbedder

PEOPLE_PER_BATCH = 16  # people whose images are in memory at once


class FeatureJudge(abc.ABC):
    """An encoder of whole images with cached features."""

    _kept: KeptFeatures | None = None

    @property
    @abc.abstractmethod
    def about(self) -> str:
        """The network's kind and how images are prepared for it, in words.

        Features kept in files are found by this, the weights and ``settings``.
        """

    @property
    def settings(self) -> Mapping[str, Any]:
        """What a feature depends on besides: the network's config, such as its activation."""
        return {}

    @abc.abstractmethod
    def image_features(self, images: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
        """Float32 [n, d] of images of any sizes, n at least 1; unit vectors, but Inception's."""

    @abc.abstractmethod
    def networks(self) -> tuple:
        """As ``Metric.networks``."""

    def features(self, generated: Generated) -> np.ndarray:
        """Float32 [n, d] of the generated images."""
        return self.rows(generated)["features"]

    def rows(self, generated: Generated) -> Rows:
        """What ``compute`` gives for the generated images."""
        return generated.once((self, "rows"), lambda: self._rows(generated.images))

    def compute(self, images: Sequence[np.ndarray] | np.ndarray) -> Rows:
        """What is cached of images, n at least 1: "features", and what else is made with them."""
        return {"features": self.image_features(images)}

    def keep(self, folder: str | Path) -> None:
        """Keep features in files, see features/of_images.py."""
        self._kept = KeptFeatures(
            folder, self.about, type(self).__name__, text_of(self.settings), self.networks()
        )

    def _rows(self, images) -> Rows:
        return self.compute(images) if self._kept is None else self._kept(images, self.compute)

    def real_features(self, people: People) -> np.ndarray:
        """Float32 [n, d] of all real images of these people; n may be 0."""
        parts = list(self.features_by_owner(people).values())
        return np.concatenate(parts) if parts else np.zeros((0, 1), np.float32)

    def features_by_owner(self, people: People) -> dict[str, np.ndarray]:
        """Name to float32 [n, d] of all real images; without people who have none."""

        def compute():
            found = {}
            for start in range(0, len(people.owners), PEOPLE_PER_BATCH):
                here = people.owners[start : start + PEOPLE_PER_BATCH]
                pictures = [(owner.name, picture) for owner in here for picture in owner.pictures()]
                if pictures:
                    features = self._rows([picture for _, picture in pictures])["features"]
                    names = np.array([name for name, _ in pictures])
                    found |= {n: features[names == n] for n in dict.fromkeys(names.tolist())}
            return found

        return people.once((self, "features"), compute)


class ClipJudge(FeatureJudge):
    """A ClipScore, ``clip``, with cached image features."""

    def __init__(self, clip: "ClipScore"):
        self.clip = clip

    @property
    def about(self) -> str:
        return f"{self.clip.family} at {self.clip.image_size} pixels"

    @property
    def settings(self) -> Mapping[str, Any]:
        return self.clip.vision_config

    def image_features(self, images: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
        return self.clip.image_features(images)

    def networks(self) -> tuple:
        return self.clip.networks


class CmmdJudge(ClipJudge):
    """The same, with images prepared as CMMD's code prepares them."""

    @property
    def about(self) -> str:
        return f"{super().about}, prepared as by CMMD"

    def image_features(self, images: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
        from persongen_jax.metrics.embedders.cmmd import cmmd_preprocess

        return self.clip.image_features(images, cmmd_preprocess)

    def networks(self) -> tuple:
        return self.clip.networks[:1]  # the image tower


class InceptionJudge(FeatureJudge):
    """An InceptionEmbedder, ``embedder``, with cached features and logits."""

    def __init__(self, embedder: "InceptionEmbedder"):
        self.embedder = embedder

    @property
    def about(self) -> str:
        return f"FID's Inception, images resized as by {self.embedder.variant}"

    def image_features(self, images: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
        return self.embedder.outputs(images)[0]

    def compute(self, images: Sequence[np.ndarray] | np.ndarray) -> Rows:
        features, logits = self.embedder.outputs(images)
        return {"features": features, "logits": logits}

    def logits(self, generated: Generated) -> np.ndarray:
        """Float32 [n, classes] of the generated images."""
        return self.rows(generated)["logits"]

    def networks(self) -> tuple:
        return self.embedder.networks


class DinoJudge(FeatureJudge):
    """A DinoEmbedder, ``embedder``, with cached image features."""

    def __init__(self, embedder: "DinoEmbedder"):
        self.embedder = embedder

    @property
    def about(self) -> str:
        return "DINO at 224 pixels"

    @property
    def settings(self) -> Mapping[str, Any]:
        return self.embedder.config

    def image_features(self, images: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
        return self.embedder.image_features(images)

    def networks(self) -> tuple:
        return self.embedder.networks
