"""Face crops by the detector's box alone, as facenet-pytorch cuts them: nothing is aligned.

FaceNet was trained on such crops (Schroff et al., arXiv 1503.03832, section 1: only cropped).
"""

from collections.abc import Sequence

import numpy as np
from PIL import Image


def crop_box(image: np.ndarray, box: Sequence[float] | np.ndarray, size: int) -> np.ndarray:
    """uint8 RGB [h, w, 3] to the box (x0, y0, x1, y1) in pixels, stretched to [size, size, 3].

    facenet-pytorch's ``extract_face`` without a margin: corners rounded down and kept inside of the
    image, then Pillow's bilinear resize.

    Raises:
        ValueError: a box outside of the image.
    """
    height, width = image.shape[:2]
    x0, y0 = (int(max(value, 0)) for value in box[:2])
    x1, y1 = (int(min(value, limit)) for value, limit in zip(box[2:], (width, height), strict=True))
    if x0 >= x1 or y0 >= y1:
        raise ValueError(
            f"face box {tuple(float(v) for v in box)} is not in an image of {width} x {height} "
            "pixels: x0 < x1 and y0 < y1 inside of it are needed"
        )
    face = Image.fromarray(image[y0:y1, x0:x1])
    return np.asarray(face.resize((size, size), Image.Resampling.BILINEAR))
