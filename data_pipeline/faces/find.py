"""Finds a person's face in any image, and crops it like references."""

import logging
from typing import Any

import numpy as np

from data_pipeline.faces.detectors import Detector, open_detector
from data_pipeline.faces.detectors.base import area
from data_pipeline.pictures.reading import load_image
from data_pipeline.pictures.transforms import square_face_crop

log = logging.getLogger(__name__)


class NoFaceFound(ValueError):
    """No face in the image; the message says how to do without the detector."""


def find_face(
    image: np.ndarray, name: str = "the picture", detector: Detector | None = None
) -> tuple[int, int, int, int]:
    """The largest face of ``image`` [h, w, 3] uint8 RGB as a box (x0, y0, x1, y1) in its pixels.

    ``detector`` None is YuNet. NoFaceFound refers to the image by ``name``.
    """
    detector = open_detector("yunet") if detector is None else detector
    (faces,) = detector.find([image])
    found = max(faces, key=area, default=None)
    if len(faces) > 1:
        log.warning(
            "%s: %d faces, of which the largest is taken; --face-box chooses another",
            name,
            len(faces),
        )
    height, width = image.shape[:2]
    if found is not None:
        x0, y0, x1, y1 = (round(v) for v in found.box)
        x0, y0, x1, y1 = max(x0, 0), max(y0, 0), min(x1, width), min(y1, height)
        if x0 < x1 and y0 < y1:
            return x0, y0, x1, y1
    raise NoFaceFound(
        f"no face found in {name} ({width}x{height} pixels, detector {detector.name}); give its "
        "place by --face-box X0,Y0,X1,Y1, another --detector, or --no-crop to use the whole image"
    )


def crop_face(
    image: Any, name: str = "the picture", detector: Detector | None = None
) -> np.ndarray:
    """The square reference crop [s, s, 3] around the largest face of an image for load_image.

    Raises:
        NoFaceFound: there is no face. ImageError: the image cannot be read.
    """
    image = load_image(image, name)
    return square_face_crop(image, find_face(image, name, detector))
