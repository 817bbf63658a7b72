"""A perceptual hash: the signs of the 64 lowest frequencies of a picture (DCT-II, 32 × 32)."""

import numpy as np
from PIL import Image

SIDE, LOW = 32, 8
BAR = 16  # of 255, by which a bar's pixels may differ
NOISE = 0.05  # share of a line's pixels that may differ more
_STEP = (np.arange(SIDE) + 0.5) * np.pi / SIDE
BASIS = np.cos(np.arange(LOW)[:, None] * _STEP)  # [8, 32]; lengths do not change signs


def phash(image: np.ndarray) -> str:
    """The hash of uint8 RGB [h, w, 3], 16 hexadecimal digits.

    A bit says whether a frequency is above the median of all but the mean. Bars around the picture
    do not count: else letterboxed pictures would look alike, and unlike what they are copies of.
    """
    grey = without_bars(Image.fromarray(image).convert("L"))
    grey = grey.resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    low = (BASIS @ np.asarray(grey, np.float64) @ BASIS.T).ravel()
    bits = low > np.median(low[1:])
    return np.packbits(bits).tobytes().hex()


def without_bars(grey: Image.Image) -> Image.Image:
    """The picture without the rim that has the colour of its first corner, but for JPEG's noise."""
    pixels = np.asarray(grey, np.int16)
    apart = np.abs(pixels - pixels[0, 0]) > BAR
    rows, columns = (np.flatnonzero(apart.mean(axis) > NOISE) for axis in (1, 0))
    if not len(rows) or not len(columns):
        return grey
    return grey.crop((columns[0], rows[0], columns[-1] + 1, rows[-1] + 1))


def as_number(digits: str) -> int:
    """The hash as a whole number of 64 bits."""
    return int(digits, 16)
