"""Finds where a face is: the landmarks by which methods that read aligned faces align it."""

import logging
from typing import Any

import numpy as np

from data_pipeline.faces.detectors import Detection, Detector, open_detector
from data_pipeline.faces.detectors.base import area
from data_pipeline.faces.face import Face
from data_pipeline.faces.find import NoFaceFound
from data_pipeline.pictures.reading import load_image

log = logging.getLogger(__name__)


def locate_face(
    image: Any,
    name: str = "the picture",
    detector: Detector | None = None,
    box: tuple[float, ...] = (),
) -> Face:
    """The largest face of an image for load_image, or the one at ``box``, with its landmarks.

    Args:
        name: of the image in messages.
        detector: one that gives landmarks; None: YuNet.
        box: (x0, y0, x1, y1) in pixels: the face that overlaps it most is taken. (): the largest.

    Raises:
        NoFaceFound: there is none, or none at ``box``. ValueError: a detector without landmarks.
        ImageError: the image cannot be read.
    """
    image = load_image(image, name)
    detector = open_detector("yunet") if detector is None else detector
    if not detector.gives_landmarks:
        raise ValueError(
            f"--detector {detector.name}: it finds no landmarks, by which this method's faces are "
            "aligned; give --detector yunet or keypoints:DIR, or aligned crops and --no-crop"
        )
    (faces,) = detector.find([image])
    found = _largest(faces, name) if not box else _at(faces, box)
    if found is None:
        raise NoFaceFound(
            f"no face found {'at --face-box ' if box else ''}in {name} "
            f"({image.shape[1]}x{image.shape[0]} pixels, detector {detector.name}); give another "
            "image, another --detector, or an aligned crop and --no-crop"
        )
    return Face(image, np.asarray(found.landmarks, np.float64))


def _largest(faces: list[Detection], name: str) -> Detection | None:
    if len(faces) > 1:
        log.warning(
            "%s: %d faces, of which the largest is taken; --face-box chooses another",
            name,
            len(faces),
        )
    return max(faces, key=area, default=None)


def _at(faces: list[Detection], box) -> Detection | None:
    shared = [_overlap(face.box, box) for face in faces]
    return faces[int(np.argmax(shared))] if any(shared) else None


def _overlap(one, other) -> float:
    """The area in both boxes, as a share of that in either."""
    x0, y0, x1, y1 = (f(a, b) for f, a, b in zip((max, max, min, min), one, other, strict=True))
    both = max(x1 - x0, 0) * max(y1 - y0, 0)
    areas = sum((b[2] - b[0]) * (b[3] - b[1]) for b in (one, other))
    return both / (areas - both) if both else 0.0
