"""A detector that needs no download: scikit-image's LBP cascade.

It finds upright frontal faces, and is much weaker than a learned detector: mark difficult faces by
hand (``face_box`` in the manifest).
"""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from data_pipeline.faces.detectors.base import Detection, Detector

# (long side in pixels, required overlapping detections), the most reliable first. Its windows start
# at 24 pixels, so the larger scale is for small faces and the smaller one for noisy images. The
# last row requires little: it accepts a doubtful face rather than none.
PASSES = ((400, 8), (256, 8), (640, 8), (400, 4))
SMALLEST_FACE = 1 / 12  # of the long side


class CascadeDetector(Detector):
    """Boxes only: squares from the brows to below the mouth, in whole pixels."""

    name = "cascade"
    gives_landmarks = False

    def __init__(self) -> None:
        try:
            from skimage.data import lbp_frontal_face_cascade_filename
            from skimage.feature import Cascade
        except ImportError as error:
            raise ImportError(
                "finding faces needs scikit-image: pip install 'persongen_jax[faces]', or give the "
                "face box yourself"
            ) from error
        self._cascade = Cascade(lbp_frontal_face_cascade_filename())

    def detect(self, images: Sequence[np.ndarray]) -> list[Detection | None]:
        return [self._largest(np.asarray(image)) for image in images]

    def _largest(self, image):
        height, width = image.shape[:2]
        for long_side, neighbours in PASSES:
            scale = long_side / max(height, width)
            size = max(1, round(width * scale)), max(1, round(height * scale))
            scaled = np.array(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))
            smallest = max(24, round(long_side * SMALLEST_FACE))
            if min(size) < smallest:
                continue
            found = self._cascade.detect_multi_scale(
                img=scaled,
                scale_factor=1.1,
                step_ratio=1,
                min_size=(smallest, smallest),
                max_size=(min(size), min(size)),
                min_neighbor_number=neighbours,
            )
            if found:
                face = max(found, key=lambda face: face["width"] * face["height"])
                x0, y0 = round(face["c"] / scale), round(face["r"] / scale)
                x1, y1 = x0 + round(face["width"] / scale), y0 + round(face["height"] / scale)
                box = max(x0, 0), max(y0, 0), min(x1, width), min(y1, height)
                return Detection(box, None, 1.0)
        return None
