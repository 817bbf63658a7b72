"""InsightFace's detector (SCRFD, arXiv 2105.04714) from the usual model packs.

The code is MIT; its pretrained models are for non-commercial research only. Nothing is downloaded.
"""

import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.faces.detectors.base import Detection, Detector

HOME = Path("~/.insightface/models")  # where InsightFace keeps its packs
PACKS = ("buffalo_l", "antelopev2", "buffalo_m", "buffalo_s", "buffalo_sc")  # the best first
FILES = ("det_*.onnx", "scrfd_*.onnx")
RECOGNISERS = ("w600k_*.onnx", "glintr*.onnx")
# Sides at which the image is searched until a face is found: small ones are for close-ups.
SIZES = tuple(range(640, 255, -64))
LICENCE = "InsightFace's detectors are for non-commercial research only"
CENTRE_TO_CORNER = 0.5  # its positions have origin "centre" (data_pipeline/faces/align.py)


def find_model(
    path: str | os.PathLike | None = None, patterns: Sequence[str] = FILES
) -> Path | None:
    """An ``.onnx``: ``path`` itself, or inside it; None searches InsightFace's packs."""
    if path is not None and Path(path).expanduser().is_file():
        return Path(path).expanduser()
    folders = [HOME / pack for pack in PACKS]
    if path is not None:
        # Its files, InsightFace's root, or the name of a pack there.
        folders = [Path(path), *(Path(path) / "models" / pack for pack in PACKS), HOME / path]
    for folder in folders:
        for pattern in patterns:
            # Some packs unpack into another folder of the same name.
            for file in sorted(folder.expanduser().rglob(pattern)):
                return file
    return None


def is_available() -> bool:
    """Whether both InsightFace and a pack's detector are installed."""
    return importlib.util.find_spec("insightface") is not None and find_model() is not None


def open_model(
    path: str | os.PathLike | None, patterns: Sequence[str], kind: str, task: str, licence: str
) -> Any:
    """InsightFace's model in one of the packs, on the CPU.

    Args:
        path, patterns: as for find_model.
        kind: "detector" or "recogniser"; task: what InsightFace calls it. licence: for the message.

    Raises:
        FileNotFoundError, ImportError: the file or InsightFace is missing; has the remedy.
        ValueError: a model for another task.
    """
    file = find_model(path, patterns)
    if file is None:
        raise FileNotFoundError(
            f"{HOME if path is None else path}: no InsightFace {kind} ({patterns[0]}) there. "
            "Unpack https://github.com/deepinsight/insightface/releases/download/v0.7/"
            f"buffalo_l.zip into {HOME}/buffalo_l, or give its folder as insightface:DIR "
            f"({licence})"
        )
    try:
        from insightface.model_zoo import get_model
    except ImportError as error:
        raise ImportError(
            f"the {kind} needs InsightFace: pip install 'persongen_jax[insightface]'"
        ) from error
    model = get_model(str(file), providers=["CPUExecutionProvider"])
    if getattr(model, "taskname", None) != task:
        raise ValueError(f"{file}: is not a face {kind}. Give a pack's {patterns[0]}.")
    model.prepare(ctx_id=-1)
    return model


class InsightFaceDetector(Detector):
    """SCRFD on the CPU.

    Args:
        path: the detector's file; its folder; a pack's name under ~/.insightface/models; or None
            for the best pack there.

    Raises:
        FileNotFoundError: no such file; the message says what to put where.
        ImportError: InsightFace is not installed.
    """

    name = "insightface"
    licence = LICENCE

    def __init__(self, path: str | os.PathLike | None = None):
        self._model = open_model(path, FILES, "detector", "detection", LICENCE)
        self.gives_landmarks = self._model.use_kps

    def find(self, images: Sequence[np.ndarray]) -> list[list[Detection]]:
        return [self._find(np.asarray(image)) for image in images]

    def _find(self, image):
        bgr = np.ascontiguousarray(image[..., ::-1])
        for side in SIZES:
            boxes, landmarks = self._model.detect(bgr, input_size=(side, side))
            if len(boxes):
                points = [None] * len(boxes)
                if landmarks is not None:
                    points = landmarks.astype(np.float64) + CENTRE_TO_CORNER
                rows = zip(boxes.tolist(), points, strict=True)
                faces = [
                    Detection(tuple(v + CENTRE_TO_CORNER for v in box), point, score)
                    for (*box, score), point in rows
                ]
                return sorted(faces, key=lambda face: -face.score)
            if self._model.static_input_size is not None:
                break
        return []
