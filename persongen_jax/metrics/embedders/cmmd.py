"""How CMMD's code prepares images for CLIP (Jayasumana et al., arXiv 2401.09603)."""

import numpy as np
from PIL import Image

from data_pipeline.pictures.transforms import clip_normalise


def cmmd_preprocess(image: np.ndarray, size: int) -> np.ndarray:
    """uint8 RGB [h, w, 3] to [size, size, 3] float32 by CLIP's mean and deviation.

    The largest square in the centre, then Pillow's bicubic resize: google-research's io_util.py.
    Its embedding.py would resize once more, which changes nothing at this size.
    """
    height, width = image.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = Image.fromarray(image[top : top + side, left : left + side])
    return clip_normalise(np.asarray(square.resize((size, size), Image.Resampling.BICUBIC)))
