"""Crop: a square around the person in which the face has more than a tenth of the area.

PhotoMaker (arXiv 2312.04461, section 3.3) and the thesis (section 4.3). The square is as large as
that allows, so that it shows as much of the person and the surroundings as it can.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from data_pipeline.collect.choices import Choice
from data_pipeline.collect.looking.looks import Look
from data_pipeline.collect.settings import Crop

STAGE = "crop"
HARDLY = 1e-6  # "more than" a share, not "at least"

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Square:
    """A part of a picture, pixels: its corner, its side, and the side it is written with."""

    left: int
    top: int
    side: int
    size: int

    @property
    def box(self) -> tuple[int, int, int, int]:
        return self.left, self.top, self.left + self.side, self.top + self.side

    def cut(self, image: np.ndarray) -> np.ndarray:
        """uint8 [h, w, 3] to [size, size, 3]."""
        x0, y0, x1, y1 = self.box
        part = image[y0:y1, x0:x1]
        if self.size == self.side:
            return part
        small = Image.fromarray(part).resize((self.size, self.size), Image.Resampling.LANCZOS)
        return np.asarray(small)

    def moved(self, points: Sequence[Sequence[float]]) -> tuple[tuple[float, float], ...]:
        """Points of the picture in pixels of the crop."""
        scale = self.size / self.side
        places = ((np.asarray(points, float) - (self.left, self.top)) * scale).round(2)
        return tuple((float(x), float(y)) for x, y in places)

    def moved_box(self, box: Sequence[float]) -> Box:
        """A box of the picture in pixels of the crop, cut at its edges."""
        (x0, y0), (x1, y1) = self.moved([box[:2], box[2:]])
        end = float(self.size)
        return max(x0, 0.0), max(y0, 0.0), min(x1, end), min(y1, end)


def plan_square(
    size: tuple[int, int], face: Sequence[float], settings: Crop, person: Box | None = None
) -> Square | None:
    """The square of a picture of ``size`` (height, width) around ``face``; None if the face fits
    into no square, or fills less of every one than it has to.

    Args:
        person: a box that the square centres on from left to right, such as that of the keypoints;
            None centres on the face.
    """
    height, width = size
    x0, y0 = max(face[0], 0.0), max(face[1], 0.0)
    x1, y1 = min(face[2], float(width)), min(face[3], float(height))
    area = (x1 - x0) * (y1 - y0)
    largest = math.sqrt(area / settings.min_face_share * (1 - HARDLY))
    side = int(min(largest, height, width))
    least = max(math.ceil(x1) - math.floor(x0), math.ceil(y1) - math.floor(y0))
    if side < least:
        return None
    middle = (x0 + x1) / 2 if person is None else (person[0] + person[2]) / 2
    left = _start(middle - side / 2, side, width, x0, x1)
    top = _start(y0 - settings.above * (y1 - y0), side, height, y0, y1)
    return Square(left, top, side, min(side, settings.max_side or side))


def person_box(look: Look) -> Box | None:
    """The box of the visible joints; None if fewer than two are known."""
    if look.keypoints is None or look.visibility is None:
        return None
    seen = np.array([p for p, v in zip(look.keypoints, look.visibility, strict=True) if v])
    if len(seen) < 2:
        return None
    (x0, y0), (x1, y1) = seen.min(0), seen.max(0)
    return float(x0), float(y0), float(x1), float(y1)


def square_of(choice: Choice, settings: Crop) -> Square | None:
    """The square of a picture that is still in."""
    return plan_square(choice.look.size, choice.box, settings, person_box(choice.look))


def _start(wanted: float, side: int, limit: int, low: float, high: float) -> int:
    """An interval of ``side`` in [0, limit] that starts near ``wanted`` and holds [low, high]."""
    first, last = max(0, math.ceil(high) - side), min(limit - side, math.floor(low))
    return min(max(round(wanted), first), last)
