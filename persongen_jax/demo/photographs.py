"""Photographs as people upload them: read within limits, and the faces in them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from data_pipeline.faces.detectors import Detection, Detector
from data_pipeline.faces.detectors.base import area
from data_pipeline.faces.find import NoFaceFound
from data_pipeline.pictures.formats import open_file
from data_pipeline.pictures.reading import ImageError, load_image
from data_pipeline.pictures.transforms import square_face_crop

MOST_PIXELS = 50_000_000
SHOWN = 384  # pixels of the longer side on the page


def read_photograph(path: str, name: str = "the photograph") -> np.ndarray:
    """uint8 RGB [h, w, 3], upright.

    Raises:
        ImageError: it is no image, or has too many pixels, which its header says already.
    """
    try:
        with open_file(path) as image:  # the header alone
            width, height = image.size
    except Exception:  # decoders raise almost anything; load_image puts it into words
        width = height = 0
    if height * width > MOST_PIXELS:
        raise ImageError(
            f"{name}: {width}x{height} pixels are more than {MOST_PIXELS // 10**6} million; make "
            "it smaller"
        )
    try:
        return load_image(path)
    except ImageError as error:
        # The path is the server's, and a file's name may hold anything.
        raise ImageError(f"{name}: {str(error).removeprefix(f'{path}: ')}") from error


def find_faces(image: np.ndarray, detector: Detector) -> list[Detection]:
    """All faces of an image, the largest first."""
    (found,) = detector.find([image])
    return sorted(found, key=area, reverse=True)


def choose_face(image: np.ndarray, detector: Detector, number: int, name: str) -> Detection:
    """Face ``number`` of an image, from 0, the largest first.

    Raises:
        NoFaceFound: it has fewer.
    """
    found = find_faces(image, detector)
    if number >= len(found):
        few = "no face is found" if not found else f"it has {len(found)} faces"
        raise NoFaceFound(f"{name}: {few}; give one that shows the face larger and from the front")
    return found[number]


def crop_of(image: np.ndarray, face: Detection) -> np.ndarray:
    """The square that methods read, uint8 [s, s, 3]."""
    height, width = image.shape[:2]
    x0, y0, x1, y1 = face.box
    return square_face_crop(image, (max(x0, 0), max(y0, 0), min(x1, width), min(y1, height)))


def with_boxes(image: np.ndarray, faces: Sequence[Detection], chosen: int) -> Image.Image:
    """A small copy with numbered boxes around the faces, the chosen one's thicker."""
    picture: Any = Image.fromarray(image)
    scale = min(1.0, SHOWN / max(picture.size))
    picture = picture.resize([max(1, round(side * scale)) for side in picture.size])
    draw = ImageDraw.Draw(picture)
    for number, face in enumerate(faces):
        box = [value * scale for value in face.box]
        draw.rectangle(box, outline="#00c853", width=4 if number == chosen else 1)
        if len(faces) > 1:
            draw.text((box[0] + 4, box[1] + 2), str(number + 1), fill="#00c853")
    return picture
