"""Finds a person's face in any image, and crops it like references."""

from pathlib import Path

import numpy as np

from data_pipeline.examples.transforms import square_face_crop
from data_pipeline.faces.detectors import Detector, open_detector
from data_pipeline.faces.detectors.insightface_scrfd import is_available
from data_pipeline.pictures.reading import load_image


class NoFaceFound(ValueError):
    """No face in the image; the message says how to do without the detector."""


def open_reference_detector(base=None, name: str = "auto") -> Detector:
    """The detector for cropping references.

    Args:
        base: a base model's directory. One with its own ``face_detector`` (the miniature) needs
            that one.
        name: as for ``open_detector``; "auto" uses the base's own, else InsightFace if its models
            are present, else scikit-image's cascade.
    """
    if name != "auto":
        return open_detector(name)
    own = None if base is None else Path(base) / "face_detector"
    if own is not None and own.is_dir():
        return open_detector("keypoints", own)
    return open_detector("insightface" if is_available() else "cascade")


def find_face(
    image: np.ndarray, name: str = "the picture", detector: Detector | None = None
) -> tuple[int, int, int, int]:
    """The largest face of ``image`` [h, w, 3] uint8 RGB as a box (x0, y0, x1, y1) in its pixels.

    ``detector`` None is the cascade; the others' boxes include more of forehead and chin than its
    squares. NoFaceFound refers to the image by ``name``.
    """
    detector = open_detector("cascade") if detector is None else detector
    (found,) = detector.detect([image])
    height, width = image.shape[:2]
    if found is not None:
        x0, y0, x1, y1 = (round(v) for v in found.box)
        x0, y0, x1, y1 = max(x0, 0), max(y0, 0), min(x1, width), min(y1, height)
        if x0 < x1 and y0 < y1:
            return x0, y0, x1, y1
    raise NoFaceFound(
        f"no face found in {name} ({width}x{height} pixels, detector {detector.name}); give a face "
        "box, or pass --no-crop to use the whole image"
    )


def crop_face(image, name: str = "the picture", detector: Detector | None = None) -> np.ndarray:
    """The square reference crop [s, s, 3] around the largest face of an image for load_image.

    Raises:
        NoFaceFound: there is no face. ImageError: the image cannot be read.
    """
    image = load_image(image, name)
    return square_face_crop(image, find_face(image, name, detector))
