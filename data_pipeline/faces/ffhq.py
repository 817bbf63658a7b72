"""Larger crops of a face, with hair and chin: FFHQ's alignment as facexlib cuts it.

PuLID reads them. What differs from ArcFace's alignment (align.py): another template, a similarity
that ignores landmarks which do not fit, and a grey border.
"""

import itertools
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from data_pipeline.faces.align import ORIGINS, TEMPLATE, sample, similarity

FFHQ_SIZE = 512
# As ArcFace's template: eyes, nose, corners of the mouth, origin "centre".
FFHQ_TEMPLATE = np.array(
    [
        (192.98138, 239.94708),
        (318.90277, 240.1936),
        (256.63416, 314.01935),
        (201.26117, 371.41043),
        (313.08905, 371.15118),
    ]
)
BORDER = (132.0, 133.0, 135.0)  # RGB; facexlib says (135, 133, 132) of BGR


def align_ffhq(
    image: ArrayLike, landmarks: ArrayLike, size: int = FFHQ_SIZE, *, origin: str = "corner"
) -> np.ndarray:
    """One face, [h, w, 3] uint8 to [size, size, 3] uint8, bilinear.

    Args:
        landmarks: [5, 2] in pixels, in the template's order; origin: their convention.

    Raises:
        ValueError: landmarks that are not finite or coincide.
    """
    x, y = _places(landmarks, size, origin)
    # What lies outside of the image is 0 after the border's colour is taken off.
    border: Any = np.array(BORDER, np.float32)
    pixels = np.asarray(image, np.float32) - border
    crop = sample(pixels[None], x[None], y[None])[0] + border
    return np.clip(np.rint(crop), 0, 255).astype(np.uint8)


def align_labels(
    labels: ArrayLike, landmarks: ArrayLike, size: int = FFHQ_SIZE, *, origin: str = "corner"
) -> np.ndarray:
    """A map of whole numbers [h, w] cut in the same way, nearest pixel; 0 outside: [size, size]."""
    known: Any = np.asarray(labels)
    x, y = (np.rint(each).astype(int) for each in _places(landmarks, size, origin))
    height, width = known.shape
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    found = known[np.clip(y, 0, height - 1), np.clip(x, 0, width - 1)]
    return np.where(inside, found, 0).astype(known.dtype)


def _places(landmarks, size, origin):
    """x and y [size, size] in the image of the crop's pixel centres."""
    points = np.asarray(landmarks, np.float64)
    if points.shape != TEMPLATE.shape or origin not in ORIGINS:
        raise ValueError(f"landmarks {points.shape}, origin={origin!r}: [5, 2], corner or centre")
    template = FFHQ_TEMPLATE * (size / FFHQ_SIZE)
    turn, shift = robust_similarity(points - ORIGINS[origin], template)
    pixels = np.arange(size)
    places = (pixels[None, :] + 1j * pixels[:, None] - shift) / turn
    return places.real, places.imag


def robust_similarity(points: np.ndarray, template: np.ndarray) -> tuple[complex, complex]:
    """The similarity by the least median of squares (Rousseeuw 1984), then by those that fit it.

    OpenCV's estimateAffinePartial2D with LMEDS tries about 13 random pairs of landmarks for the
    one whose similarity has the least median error; here all pairs are tried. What fits is within
    2.5 robust standard deviations, and the result is the best for all of it.

    Returns:
        (turn, shift): with (x, y) as x + iy a point goes to ``turn * point + shift``.
    """
    whole = similarity(points[None], template)  # raises for what has no scale
    here, there = (p[:, 0] + 1j * p[:, 1] for p in (points, template))
    best, least = None, np.inf
    for i, j in itertools.combinations(range(len(here)), 2):
        if here[i] == here[j]:
            continue
        turn = (there[j] - there[i]) / (here[j] - here[i])
        errors = np.abs(turn * here + (there[i] - turn * here[i]) - there) ** 2
        if np.median(errors) < least:
            best, least = errors, np.median(errors)
    spread = 2.5 * 1.4826 * (1 + 5 / (len(here) - 2)) * np.sqrt(least)
    fits = None if best is None else best <= max(spread, 1e-3) ** 2
    if fits is None or fits.sum() < 2:
        return complex(whole[0][0]), complex(whole[1][0])
    turn, shift = similarity(points[fits][None], template[fits])
    return complex(turn[0]), complex(shift[0])
