"""Face detectors behind one interface, opened by name.

keypoints:DIR     the miniature's KeypointNet, a folder of this project
insightface       SCRFD from InsightFace's model packs, if their files exist
insightface:DIR   the same, from this folder
cascade           scikit-image's own; boxes only
"""

from data_pipeline.faces.detectors.base import Detection, Detector

NAMES = ("keypoints", "insightface", "cascade")


def open_detector(name: str, path=None) -> Detector:
    """The detector called ``name``, "keypoints:DIR" being the same as ("keypoints", "DIR").

    Nothing is ever downloaded.

    Raises:
        ValueError: no such detector, or one that needs a folder and has none.
        FileNotFoundError, ImportError: its files or its library are missing; has the remedy.
    """
    kind, _, inline = str(name).partition(":")
    path = inline or path
    if kind == "keypoints":
        if not path:
            raise ValueError("the detector 'keypoints' needs its folder: keypoints:DIR")
        from data_pipeline.faces.detectors.keypoints import KeypointsDetector

        return KeypointsDetector(path)
    if kind == "insightface":
        from data_pipeline.faces.detectors.insightface_scrfd import InsightFaceDetector

        return InsightFaceDetector(path)
    if kind == "cascade":
        from data_pipeline.faces.detectors.cascade import CascadeDetector

        return CascadeDetector()
    raise ValueError(f"detector {name!r} is unknown; known: {', '.join(NAMES)}")


__all__ = ["NAMES", "Detection", "Detector", "open_detector"]
