"""Crops and resizes images: face crops, CLIP's preprocessing, the target crop.

Images are uint8 RGB arrays [h, w, 3] unless noted; boxes are (x0, y0, x1, y1) in pixels, x to the
right, y down, x1 and y1 exclusive.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image

CLIP_MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
CLIP_STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)
IMAGENET_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
IMAGENET_STD = np.array([0.229, 0.224, 0.225], np.float32)


def square_face_crop(
    image: np.ndarray, box: Sequence[float] | np.ndarray, enlarge: float = 0.2
) -> np.ndarray:
    """A square around the face [s, s, 3], its longer side extended by ``enlarge`` on either side.

    The square is shifted if it would leave the image, and extended less if the image is too small.
    Only if the face box itself is taller or wider than any square in the image is the image's edge
    repeated, so that the face is neither cut nor distorted.
    """
    height, width = image.shape[:2]
    x0, y0, x1, y1 = (float(v) for v in box)
    if not (x0 < x1 and y0 < y1):
        raise ValueError(f"face box {tuple(box)} is empty: x0 < x1 and y0 < y1 are needed")
    face = max(x1 - x0, y1 - y0)
    side = max(1, round(min(face * (1 + 2 * enlarge), max(face, min(height, width)))))
    left = _place((x0 + x1) / 2, side, width)
    top = _place((y0 + y1) / 2, side, height)
    if 0 <= left <= width - side and 0 <= top <= height - side:
        return image[top : top + side, left : left + side]
    columns = np.clip(np.arange(left, left + side), 0, width - 1)
    rows = np.clip(np.arange(top, top + side), 0, height - 1)
    return image[rows[:, None], columns[None, :]]


def _place(centre: float, length: int, limit: int) -> int:
    """Start of an interval around ``centre``, moved into [0, limit) or centred over it."""
    if length > limit:
        return -((length - limit) // 2)
    return min(max(round(centre - length / 2), 0), limit - length)


def clip_preprocess(image: np.ndarray, size: int) -> np.ndarray:
    """[size, size, 3] float32 for CLIP: bicubic to the short side, centre crop, normalised."""
    return clip_normalise(clip_crop(image, size))


def clip_crop(image: np.ndarray, size: int) -> np.ndarray:
    """clip_preprocess's image before normalisation, [size, size, 3] uint8."""
    resized = _resize_short_side(image, size, math.floor)
    height, width = resized.shape[:2]
    top, left = (height - size) // 2, (width - size) // 2
    return resized[top : top + size, left : left + size]


def clip_normalise(pixels: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """CLIP's colours [h, w, 3] float32 of uint8 pixels; ``out``, if given, must be contiguous."""
    out = np.empty(pixels.shape, np.float32) if out is None else out
    return _normalise(pixels, CLIP_MEAN, CLIP_STD, out)


def _normalise(pixels, mean, std, out):
    width = pixels.shape[1]
    # Whole rows at a time: over a last axis of 3, numpy's loops are several times slower.
    lines = out.reshape(len(pixels), -1)
    np.divide(pixels.reshape(lines.shape), np.float32(255), out=lines)
    lines -= np.tile(mean, width)
    lines /= np.tile(std, width)
    return out


def imagenet_preprocess(image: np.ndarray, size: int = 224, resized: int = 256) -> np.ndarray:
    """[size, size, 3] float32 as DINO's and DINOv2's evaluations prepare images.

    Short side to ``resized`` bicubically, centre crop, ImageNet's mean and standard deviation.
    """
    image = _resize_short_side(image, resized, math.floor)
    # torchvision's CenterCrop rounds halves to even numbers.
    top, left = (round((side - size) / 2) for side in image.shape[:2])
    pixels = image[top : top + size, left : left + size]
    return _normalise(pixels, IMAGENET_MEAN, IMAGENET_STD, np.empty(pixels.shape, np.float32))


@dataclass(frozen=True)
class TargetCrop:
    """The crop of a target image: the image resized to ``resized`` (height, width), and in it the
    part of ``size`` (height, width) with its corner at ``top`` and ``left``.

    ``time_ids`` [6] and ``face_box`` [4] are as in resize_and_crop. ``certain``: no other draw
    could have given another position.
    """

    resized: tuple[int, int]
    top: int
    left: int
    size: tuple[int, int]
    certain: bool
    time_ids: np.ndarray
    face_box: np.ndarray
    scale: tuple[float, float] = (1.0, 1.0)  # of ``resized`` to the picture, (x, y)

    def cut(self, image: np.ndarray) -> np.ndarray:
        """Pixels [h, w, 3] float32 in [-1, 1] of the image that this crop was planned for."""
        image = resize(image, self.resized)
        (height, width), top, left = self.size, self.top, self.left
        crop = image[top : top + height, left : left + width]
        return crop.astype(np.float32) / 127.5 - 1

    def move(self, points: ArrayLike) -> np.ndarray:
        """Points [..., 2] of the image, (x, y) in pixels, in the crop's pixels; float64."""
        return np.asarray(points, np.float64) * self.scale - [self.left, self.top]


def resize_and_crop(
    image: np.ndarray,
    face_box: Sequence[float] | np.ndarray | None,
    size: int | tuple[int, int],
    rng: np.random.Generator | None = None,
    **origin: Any,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The target image: resized to cover ``size``, then cropped, keeping the face if possible.

    As plan_crop says; returns pixels [h, w, 3] float32 in [-1, 1], time_ids [6] and face_box [4].
    """
    crop = plan_crop(image.shape[:2], face_box, size, rng, **origin)
    return crop.cut(image), crop.time_ids, crop.face_box


def plan_crop(
    shape: tuple[int, int],
    face_box: Sequence[float] | np.ndarray | None,
    size: int | tuple[int, int],
    rng: np.random.Generator | None = None,
    *,
    original_size: tuple[int, int] | None = None,
    original_crop: tuple[float, float, float, float] | None = None,
) -> TargetCrop:
    """How an image of ``shape`` (height, width) becomes a target of ``size``; needs no pixels.

    ``size`` is (height, width), or the side of a square. The image is scaled until it just covers
    that. The crop's position is drawn from ``rng``, or central without one. ``face_box`` may be
    None. If the image is a part of a larger original, ``original_size`` (height, width) and
    ``original_crop`` (box) locate it in the original's pixels; time_ids then describe the original:
    (original_h, original_w, crop_top, crop_left, target_h, target_w) float32, with offsets in the
    resized image as SDXL counts them. The crop's face box is float32 in pixels of the crop, zeros
    if there is none.
    """
    target = (size, size) if isinstance(size, int) else (size[0], size[1])
    height, width = covering(shape, target)
    box: np.ndarray = np.zeros(4, np.float32)
    if face_box is not None:
        box = np.asarray(face_box, np.float64) * np.array([width / shape[1], height / shape[0]] * 2)
    left, only_left = _offset(width - target[1], target[1], box[0], box[2], rng)
    top, only_top = _offset(height - target[0], target[0], box[1], box[3], rng)
    if face_box is not None:
        box = np.clip(box - [left, top, left, top], 0, [target[1], target[0]] * 2)
        if box[0] >= box[2] or box[1] >= box[3]:
            box = np.zeros(4)
    place = top, left
    if original_crop is not None:  # the same offsets, in the original at this scale
        x0, y0, x1, y1 = original_crop
        left, top = left + round(x0 * width / (x1 - x0)), top + round(y0 * height / (y1 - y0))
    time_ids = np.array([*(original_size or shape), top, left, *target], np.float32)
    certain = only_left and only_top
    scale = (width / shape[1], height / shape[0])
    box = box.astype(np.float32)
    return TargetCrop((height, width), *place, target, certain, time_ids, box, scale)


def covering(shape: tuple[int, int], target: tuple[int, int]) -> tuple[int, int]:
    """The smallest size with the image's aspect ratio that covers ``target``; (height, width)."""
    # Whole numbers: with height * (size / height) a side could miss by one.
    tall = shape[0] * target[1] >= shape[1] * target[0]  # the width just fits
    if tall:
        return max(target[0], round(target[1] * shape[0] / shape[1])), target[1]
    return target[0], max(target[1], round(target[0] * shape[1] / shape[0]))


def _offset(most: int, size: int, low: float, high: float, rng) -> tuple[int, bool]:
    """A crop offset in [0, most] that keeps [low, high) inside, and whether it is the only one; it
    draws in any case, so that the generator's later draws do not depend on the image's shape."""
    first, last = 0, most
    if high > low:
        first, last = max(0, math.ceil(high) - size), min(most, math.floor(low))
        if first > last:  # wider than the crop, or beyond the image's edge: centre on it
            first = last = min(max(round((low + high - size) / 2), 0), most)
    if rng is None:
        return min(max(most // 2, first), last), True
    return int(first + math.floor(rng.random() * (last - first + 1))), first == last


def fit_image(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """uint8 RGB [h, w, 3] resized to cover (height, width), centre-cropped: float32 in 0..1."""
    crop = plan_crop(image.shape[:2], None, size)
    return (crop.cut(image) + 1) / 2


def _resize_short_side(image: np.ndarray, size: int, rounding) -> np.ndarray:
    height, width = image.shape[:2]
    short = min(height, width)
    if short == size:
        return image
    # Whole numbers first: with height * (size / height) the short side could miss by one.
    new = [size if s == short else int(rounding(size * s / short)) for s in (height, width)]
    return resize(image, new)


def resize(image: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """Resize to (height, width), bicubic; unchanged if it has that size."""
    if image.shape[:2] == tuple(size):
        return image
    resized = Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.BICUBIC)
    return np.asarray(resized)
