"""A perceptual hash: the signs of the 64 lowest frequencies of a picture (DCT-II, 32 × 32)."""

import numpy as np
from PIL import Image

SIDE, LOW = 32, 8
_STEP = (np.arange(SIDE) + 0.5) * np.pi / SIDE
BASIS = np.cos(np.arange(LOW)[:, None] * _STEP)  # [8, 32]; lengths do not change signs


def phash(image: np.ndarray) -> str:
    """The hash of uint8 RGB [h, w, 3], 16 hexadecimal digits.

    A bit says whether a frequency is above the median of all but the mean.
    """
    grey = Image.fromarray(image).convert("L").resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    low = (BASIS @ np.asarray(grey, np.float64) @ BASIS.T).ravel()
    bits = low > np.median(low[1:])
    return np.packbits(bits).tobytes().hex()


def as_number(digits: str) -> int:
    """The hash as a whole number of 64 bits."""
    return int(digits, 16)
