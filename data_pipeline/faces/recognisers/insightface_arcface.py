"""ArcFace (arXiv 1801.07698) out of InsightFace's model packs.

The code is MIT; its pretrained models are for non-commercial research only. Nothing is downloaded.
"""

import os

import numpy as np

from data_pipeline.faces.detectors.insightface_scrfd import HOME, RECOGNISERS, find_model
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
        file = find_model(path, RECOGNISERS)
        if file is None:
            raise FileNotFoundError(
                f"{HOME if path is None else path}: no InsightFace recogniser (w600k_*.onnx) "
                "there. Unpack https://github.com/deepinsight/insightface/releases/download/v0.7/"
                f"buffalo_l.zip into {HOME}/buffalo_l, or give its folder as insightface:DIR "
                f"({LICENCE})"
            )
        try:
            from insightface.model_zoo import get_model
        except ImportError as error:
            raise ImportError(
                "the recogniser needs InsightFace: pip install 'persongen_jax[insightface]'"
            ) from error
        self._model = get_model(str(file), providers=["CPUExecutionProvider"])
        if getattr(self._model, "taskname", None) != "recognition":
            raise ValueError(f"{file}: is not a recogniser. Give a pack's w600k_*.onnx.")
        self._model.prepare(ctx_id=-1)
        self.size = self._model.input_size[0]
        self.dim = int(self._model.output_shape[1])

    def embed_crops(self, crops: np.ndarray) -> np.ndarray:
        crops = self.check(crops)
        if not len(crops):
            return np.zeros((0, self.dim), np.float32)
        return normalised(self._model.get_feat(list(np.ascontiguousarray(crops[..., ::-1]))))
