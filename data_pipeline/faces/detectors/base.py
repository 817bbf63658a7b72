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


class Detector(abc.ABC):
    """Finds the largest face of each image.

    Attributes:
        name: as accepted by ``open_detector``.
        gives_landmarks: whether detections have them, so that faces can be aligned.
        licence: of its weights; "" if their use is unrestricted.
    """

    name: str
    gives_landmarks: bool = True
    licence: str = ""

    @abc.abstractmethod
    def detect(self, images: Sequence[np.ndarray]) -> list[Detection | None]:
        """One entry per image, uint8 RGB [h, w, 3] of any sizes; None if it has no face."""
