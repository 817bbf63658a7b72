"""ArcFace (arXiv 1801.07698) out of InsightFace's model packs.

The code is MIT; its pretrained models are for non-commercial research only. Nothing is downloaded.
"""

import os

import numpy as np

from data_pipeline.faces.detectors.insightface_scrfd import RECOGNISERS, open_model
from data_pipeline.faces.recognisers.base import Recogniser, normalised

LICENCE = "InsightFace's recognisers are for non-commercial research only"


class ArcFaceRecogniser(Recogniser):
    """ArcFace on the CPU.

    Args:
        path: the recogniser's file; its folder; a pack's name under ~/.insightface/models; or None
            for the best pack there.

    Raises:
        FileNotFoundError: no such file; the message says what to put where.
        ImportError: InsightFace is not installed.
    """

    name = "insightface"
    licence = LICENCE

    def __init__(self, path: str | os.PathLike | None = None):
        self._model = open_model(path, RECOGNISERS, "recogniser", "recognition", LICENCE)
        self.size = self._model.input_size[0]
        self.dim = int(self._model.output_shape[1])

    def embed_crops(self, crops: np.ndarray) -> np.ndarray:
        crops = self.check(crops)
        if not len(crops):
            return np.zeros((0, self.dim), np.float32)
        return normalised(self._model.get_feat(list(np.ascontiguousarray(crops[..., ::-1]))))
