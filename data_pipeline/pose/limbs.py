"""Limbs as ellipses between two joints, and how thick they are."""

import math
from typing import NamedTuple

import numpy as np

from data_pipeline.pose.raster import ellipse_polygon, fill_polygon

FARTHEST = 1e6  # pixels from the image's corner
STYLES = ("openpose", "xinsir")
SMALL = 256  # pixels of the shorter side, below which lines become thinner


class Widths(NamedTuple):
    """Whole pixels.

    half_width: of a limb in its middle. radius: of a joint.
    """

    half_width: int
    radius: int


PUBLISHED = Widths(half_width=4, radius=4)


def widths_for(height: int, width: int, style: str = "openpose") -> Widths:
    """What a skeleton of ``height`` and ``width`` pixels is drawn with.

    "openpose" is 4 and 4 at every size, as most published ControlNets read it. "xinsir" has thicker
    limbs from 500 pixels on: 4 × min(2 + longest side // 1000, 7). Where the shorter side has less
    than 256 pixels, both numbers are multiplied by side / 256, rounded down, but at least 1: at
    64 pixels the published width would cover the person.

    Raises:
        ValueError: another style.
    """
    if style not in STYLES:
        raise ValueError(f"skeleton style {style!r}: give {' or '.join(STYLES)}")
    radius = max(1, min(PUBLISHED.radius, PUBLISHED.radius * min(height, width) // SMALL))
    longest = max(height, width)
    thicker = min(2 + longest // 1000, 7) if style == "xinsir" and longest >= 500 else 1
    return Widths(radius * thicker, radius)


def fill_limb(
    image: np.ndarray, first: np.ndarray, second: np.ndarray, half_width: int, colour: tuple
) -> None:
    """Fill the ellipse between two joints (x, y) in ``image`` [h, w, c], in place.

    Centre, half length and angle are truncated to whole numbers, so the joints' order matters.
    """
    (x0, y0), (x1, y1) = first.tolist(), second.tolist()
    centre = int((x0 + x1) / 2), int((y0 + y1) / 2)
    half = int(((x0 - x1) ** 2 + (y0 - y1) ** 2) ** 0.5 / 2)
    degrees = int(math.degrees(math.atan2(y0 - y1, x0 - x1)))
    fill_polygon(image, ellipse_polygon(centre, (half, half_width), degrees), colour)


def check_points(points: np.ndarray, seen: np.ndarray) -> None:
    """ValueError for a seen point [..., 2] that is no place in or around an image."""
    shown = points[seen]
    if not (np.abs(shown) <= FARTHEST).all():  # False for NaN too
        worst = shown[~(np.abs(shown) <= FARTHEST).all(-1)][0]
        raise ValueError(
            f"a joint at {tuple(worst.tolist())}: give pixels of the image, or mark it as not seen"
        )
