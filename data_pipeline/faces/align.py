"""Aligned face crops: five landmarks moved onto ArcFace's template (arXiv 1801.07698, section 4.1).

Positions are (x, y), x to the right, y down. There are two conventions: with origin "corner", (0,
0) is the outer corner of the first pixel and its centre is (0.5, 0.5), as in data_pipeline.people;
with origin "centre", (0, 0) is the first pixel's centre, as in InsightFace's detectors, OpenCV and
the template. Confusing them shifts the crop by half a pixel of the image.
"""

import numpy as np
from numpy.typing import ArrayLike

# Left eye, right eye (as seen in the picture), nose tip, left and right corner of the mouth, in a
# crop of TEMPLATE_SIZE pixels, origin "centre".
TEMPLATE = np.array(
    [
        (38.2946, 51.6963),
        (73.5318, 51.5014),
        (56.0252, 71.7366),
        (41.5493, 92.3655),
        (70.7299, 92.2041),
    ]
)
TEMPLATE_SIZE = 112
SMALLEST = 1e-3  # pixels between landmarks, below which the scale is undefined
ORIGINS = {"corner": 0.5, "centre": 0.0}  # position of the first pixel's centre


def align_face(
    image: ArrayLike, landmarks: ArrayLike, size: int = TEMPLATE_SIZE, *, origin: str = "corner"
) -> np.ndarray:
    """One face, [h, w, 3] to [size, size, 3]; see :func:`align_faces`."""
    return align_faces(np.asarray(image)[None], np.asarray(landmarks)[None], size, origin=origin)[0]


def align_faces(
    images: ArrayLike, landmarks: ArrayLike, size: int = TEMPLATE_SIZE, *, origin: str = "corner"
) -> np.ndarray:
    """Crops whose landmarks are as close to the template as a similarity transform can bring them.

    Bilinear without smoothing, black outside the image, as in the training of recognisers: a face
    much larger than ``size`` is sampled and not averaged.

    Args:
        images: [n, h, w, c], uint8 or floating point.
        landmarks: [n, 5, 2] in pixels, in TEMPLATE's order.
        size: side of the crops; the template is scaled by size / 112, as InsightFace scales it.
        origin: the landmarks' convention, "corner" or "centre".

    Returns:
        [n, size, size, c] of the images' dtype.

    Raises:
        ValueError: other shapes, or landmarks that are not finite or coincide.
    """
    images, landmarks = np.asarray(images), np.asarray(landmarks, np.float64)
    if images.ndim != 4 or landmarks.shape != (len(images), *TEMPLATE.shape):
        raise ValueError(
            f"images {images.shape} and landmarks {landmarks.shape}: [n, h, w, c] and [n, 5, 2] "
            "are needed"
        )
    if origin not in ORIGINS:
        raise ValueError(f"origin={origin!r} is not one of {', '.join(ORIGINS)}")
    if size < 1:
        raise ValueError(f"size={size}: at least one pixel is needed")
    template = TEMPLATE * (size / TEMPLATE_SIZE)
    turn, shift = similarity(landmarks - ORIGINS[origin], template)
    pixels = np.arange(size)
    crop = pixels[None, :] + 1j * pixels[:, None]
    places = (crop - shift[:, None, None]) / turn[:, None, None]
    return sample(images, places.real, places.imag)


def similarity(points: np.ndarray, template: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rotation, scale and shift that bring ``points`` [n, k, 2] closest to ``template`` [k, 2].

    This is Umeyama's estimate (IEEE TPAMI 13, 1991, no reflection), which in the plane has a closed
    form: with (x, y) as x + iy it is the least-squares line ``turn * point + shift``.

    Returns:
        (turn, shift), each complex [n]: |turn| is the scale, its angle the rotation.

    Raises:
        ValueError: points that are not finite, or have no scale.
    """
    finite = np.isfinite(points).all((1, 2))
    extent = np.ptp(np.where(finite[:, None, None], points, 0), axis=1).max(-1)
    bad = extent < SMALLEST
    if bad.any():
        raise ValueError(f"landmarks of face {bad.argmax()} are not finite or coincide")
    here = points[..., 0] + 1j * points[..., 1]
    there = template[..., 0] + 1j * template[..., 1]
    here_mean, there_mean = here.mean(-1), there.mean(-1)
    centred = here - here_mean[:, None]
    spread = (np.abs(centred) ** 2).sum(-1)
    turn = (centred.conj() * (there - there_mean)).sum(-1) / spread
    return turn, there_mean - turn * here_mean


def sample(images: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Bilinear samples of [n, h, w, c] at pixel centres x, y [n, s, s], black outside."""
    n, height, width, _ = images.shape
    # A black rim avoids special cases at the border; everything further out maps to it.
    padded = np.pad(images, ((0, 0), (1, 2), (1, 2), (0, 0)))
    x, y = np.clip(x, -1, width) + 1, np.clip(y, -1, height) + 1
    column, row = np.floor(x).astype(int), np.floor(y).astype(int)
    right, below = (x - column)[..., None], (y - row)[..., None]
    which = np.arange(n)[:, None, None]
    top = padded[which, row, column] * (1 - right) + padded[which, row, column + 1] * right
    row = row + 1
    bottom = padded[which, row, column] * (1 - right) + padded[which, row, column + 1] * right
    sampled = top * (1 - below) + bottom * below
    if np.issubdtype(images.dtype, np.integer):
        sampled = np.rint(sampled)
    return sampled.astype(images.dtype)
