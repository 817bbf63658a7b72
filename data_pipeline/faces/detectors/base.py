"""The interface of face detectors."""

import abc
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Detection(NamedTuple):
    """One face. Positions are pixels of the image, origin "corner"
    (data_pipeline/faces/align.py).

    box: (x0, y0, x1, y1); how much forehead and chin it includes depends on the detector.
    landmarks: [5, 2] in the order of align.TEMPLATE; None if the detector gives none.
    score: in [0, 1]; 1 if the detector gives none.
    """

    box: tuple[float, float, float, float]
    landmarks: np.ndarray | None
    score: float


def area(found: Detection) -> float:
    """Pixels of the box."""
    x0, y0, x1, y1 = found.box
    return (x1 - x0) * (y1 - y0)


class Detector(abc.ABC):
    """Finds the faces of images.

    Attributes:
        name: as accepted by ``open_detector``.
        gives_landmarks: whether detections have them, so that faces can be aligned.
        licence: of its weights; "" if their use is unrestricted.
    """

    name: str
    gives_landmarks: bool = True
    licence: str = ""

    @abc.abstractmethod
    def find(self, images: Sequence[np.ndarray]) -> list[list[Detection]]:
        """All faces of each image, uint8 RGB [h, w, 3] of any sizes, the highest score first."""

    def detect(self, images: Sequence[np.ndarray]) -> list[Detection | None]:
        """The largest face of each image; None if it has none."""
        return [max(faces, key=area, default=None) for faces in self.find(images)]
