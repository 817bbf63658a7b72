"""InstantID's picture of five facial points, which its IdentityNet reads (arXiv 2401.07519)."""

import numpy as np
from numpy.typing import ArrayLike

from data_pipeline.pose.limbs import Widths, check_points, fill_limb
from data_pipeline.pose.raster import fill_disc

COLOURS = ((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (255, 0, 255))
NOSE = 2
PUBLISHED = Widths(half_width=4, radius=10)


def draw_kps(points: ArrayLike, height: int, width: int, widths: Widths = PUBLISHED) -> np.ndarray:
    """The nose joined to eyes and corners of the mouth, on black: uint8 RGB [height, width, 3].

    The published widths suit its images of about 1024 pixels and are its only ones; an image that
    the network was not trained for may need others.

    Args:
        points: [5, 2] (x, y) in pixels, origin "corner", in ArcFace's order as records'
            ``landmarks`` are: eyes, nose, corners of the mouth, each from left to right.

    Raises:
        ValueError: another shape, or a point that is no place (NaN, or far away).
    """
    points = np.asarray(points, np.float64)
    if points.shape != (5, 2):
        raise ValueError(f"facial points of shape {points.shape}: (5, 2) is needed")
    check_points(points, np.ones(5, bool))
    image = np.zeros((height, width, 3), np.uint8)
    for i in (0, 1, 3, 4):
        fill_limb(image, points[i], points[NOSE], widths.half_width, COLOURS[i])
    image = (image * 0.6).astype(np.uint8)
    for (x, y), colour in zip(points.tolist(), COLOURS, strict=True):
        fill_disc(image, (int(x), int(y)), widths.radius, colour)
    return image
