"""Face sharpness: the variance of the Laplacian (Pech-Pacheco et al., ICPR 2000) of the face.

On an aligned crop of fixed size (ArcFace's template, arXiv 1801.07698), so that a face's place and
turn do not matter. A small face is enlarged and so less sharp. Noise is sharp too: compare methods
on the same prompts.
"""

import numpy as np
from ml_collections import ConfigDict

from persongen_jax.metrics.base import Generated, Known, Metric, Values
from persongen_jax.metrics.judges import Judges

SIZE = 112
LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601


class FaceSharpness(Metric):
    """Variance of the Laplacian of the crop's luma in 0 to 255, from 0 on; NaN without a face."""

    name, title, form = "face_sharpness", "face sharpness", "{:.0f}"
    judge_key = "face_detector"

    def __init__(self, config: ConfigDict, judges: Judges):
        self.faces = judges.faces
        self.judge = self.faces.embedder.detector_name

    def __call__(self, generated: Generated, known: Known) -> Values:
        detections = self.faces.detections(generated)
        values = np.full(len(detections), np.nan)
        rows = np.flatnonzero([each is not None for each in detections])
        for row, crop in zip(rows, self.faces.crops(generated, rows, SIZE), strict=True):
            values[row] = laplacian_variance(crop)
        return Values(values, facts={"pixels": SIZE})


def laplacian_variance(image: np.ndarray) -> float:
    """Of the four neighbours' sum less four times a pixel, in the luma of uint8 RGB [h, w, 3]."""
    luma = image @ LUMA
    inside = luma[1:-1, 1:-1]
    around = luma[:-2, 1:-1] + luma[2:, 1:-1] + luma[1:-1, :-2] + luma[1:-1, 2:]
    return float((around - 4 * inside).var())
