"""The interface of face recognisers."""

import abc
from collections.abc import Sequence

import numpy as np

from data_pipeline.faces.align import align_face
from data_pipeline.faces.detectors.base import Detection


class Recogniser(abc.ABC):
    """Maps aligned faces to embeddings, whose cosine says whether two are the same person.

    Attributes:
        name: as accepted by ``open_recogniser``.
        size: side of the aligned crops in pixels.
        dim: d, the length of an embedding.
        licence: of its weights, one line.
    """

    name: str
    size: int = 112
    dim: int
    licence: str = ""

    @abc.abstractmethod
    def embed_crops(self, crops: np.ndarray) -> np.ndarray:
        """Aligned faces (data_pipeline/faces/align.py), uint8 RGB [n, size, size, 3], to embeddings
        float32 [n, dim] of length 1."""

    def embed(self, image: np.ndarray, faces: Sequence[Detection]) -> np.ndarray:
        """The embeddings [n, dim] of faces of one image, which have landmarks."""
        if not faces:
            return np.zeros((0, self.dim), np.float32)
        crops = [align_face(image, np.asarray(face.landmarks), self.size) for face in faces]
        return self.embed_crops(np.stack(crops))

    def check(self, crops: np.ndarray) -> np.ndarray:
        """``crops`` as an array; ValueError if they are not what ``embed_crops`` needs."""
        crops = np.asarray(crops)
        if crops.dtype != np.uint8 or crops.shape[1:] != (self.size, self.size, 3):
            raise ValueError(
                f"crops {crops.dtype} {crops.shape}: uint8 [n, {self.size}, {self.size}, 3] is "
                "needed"
            )
        return crops


def normalised(embeddings: np.ndarray) -> np.ndarray:
    """Rows of length 1."""
    return embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
