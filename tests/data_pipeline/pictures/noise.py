"""Images of random pixels."""

import numpy as np


def picture(height=20, width=30) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


PIXELS = picture()
