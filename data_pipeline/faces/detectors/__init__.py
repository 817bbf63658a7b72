"""Face detectors behind one interface, opened by name.

insightface       SCRFD out of InsightFace's model packs, if their files are there
insightface:DIR   the same, out of this folder
cascade           scikit-image's own; boxes alone
"""

import os

from data_pipeline.faces.detectors.base import Detection, Detector
from data_pipeline.faces.detectors.insightface_scrfd import is_available

NAMES = ("insightface", "cascade")


def open_detector(name: str, path: str | os.PathLike | None = None) -> Detector:
    """The detector called ``name``, "insightface:DIR" being the same as ("insightface", "DIR").

    Nothing is ever downloaded.

    Raises:
        ValueError: no such detector, or one that needs a folder and has none.
        FileNotFoundError, ImportError: its files or its library are missing; has the remedy.
    """
    kind, _, inline = str(name).partition(":")
    path = inline or path
    if kind == "insightface":
        from data_pipeline.faces.detectors.insightface_scrfd import InsightFaceDetector

        return InsightFaceDetector(path)
    if kind == "cascade":
        from data_pipeline.faces.detectors.cascade import CascadeDetector

        return CascadeDetector()
    raise ValueError(
        f"detector {name!r} is unknown; known: {', '.join(NAMES)}, and in "
        "persongen_jax keypoints:DIR"
    )


__all__ = ["NAMES", "Detection", "Detector", "is_available", "open_detector"]
