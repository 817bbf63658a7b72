"""What is said of each image: likeness to the references, and to the prompt."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from persongen_jax.demo.offers import ASSETS
from persongen_jax.metrics.clip_score import ClipScore
from persongen_jax.metrics.face_embedder import FaceEmbedder, open_face_embedder


@dataclass(frozen=True)
class Judges:
    """The networks by which images are scored; "" for none. They are opened when first needed.

    Attributes:
        face_net, detector: as config.face_net and config.face_detector. clip: as config.clip.
    """

    face_net: str = ""
    detector: str = "auto"
    clip: str = ""

    @classmethod
    def of_miniature(cls) -> "Judges":
        """The networks that no method of the miniature reads."""
        judges = ASSETS / "judges"
        detector = f"keypoints:{judges / 'face_detector'}"
        return cls(str(judges / "face_net" / "model.safetensors"), detector, str(judges / "clip"))

    def face_sim(self, images: np.ndarray, references: Sequence[np.ndarray]) -> list[float | None]:
        """The cosine of each image's face with the mean of the references', None without a face.

        Args:
            images: uint8 [n, h, w, 3]. references: crops of one person, uint8 [h, w, 3].
        """
        if not self.face_net or not references:
            return [None] * len(images)
        embedder = _faces(self.face_net, self.detector)
        known, seen = embedder.embed(references)
        made, found = embedder.embed(images)
        if not seen.any():
            return [None] * len(images)
        mean = known[seen].mean(0)
        cosines = made @ (mean / np.linalg.norm(mean))
        return [float(c) if there else None for c, there in zip(cosines, found, strict=True)]

    def clip_t(self, images: np.ndarray, text: str) -> list[float | None]:
        """100 times the cosine of each image with the prompt."""
        if not self.clip:
            return [None] * len(images)
        scores: Any = _clip(self.clip).score(list(images), [text] * len(images))
        return [float(score) for score in scores]


@functools.cache
def _faces(face_net: str, detector: str) -> FaceEmbedder:
    return open_face_embedder(face_net, detector)


@functools.cache
def _clip(folder: str) -> ClipScore:
    return ClipScore(folder)
