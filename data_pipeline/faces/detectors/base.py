"""What every face detector gives."""

import abc
from typing import NamedTuple

import numpy as np


class Detection(NamedTuple):
    """One face. Positions are pixels of the picture, origin "corner"
    (data_pipeline/faces/align.py).

    box: (x0, y0, x1, y1); how much forehead and chin it holds differs from detector to detector.
    landmarks: [5, 2] in the order of align.TEMPLATE, None where the detector gives none.
    score: in [0, 1], 1 where the detector gives none.
    """

    box: tuple[float, float, float, float]
    landmarks: np.ndarray | None
    score: float


class Detector(abc.ABC):
    """Finds the largest face of each picture.

    Attributes:
        name: as ``open_detector`` knows it.
        gives_landmarks: whether detections have them, so that faces can be aligned.
        licence: of its weights, "" where nothing restricts their use.
    """

    name: str
    gives_landmarks: bool = True
    licence: str = ""

    @abc.abstractmethod
    def detect(self, images) -> list[Detection | None]:
        """For each of the pictures, uint8 RGB [h, w, 3] of any sizes; None where no face is."""
