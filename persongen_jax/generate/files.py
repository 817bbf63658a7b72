"""The files that generate reads: references and other inputs."""

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.faces.face import Face
from data_pipeline.faces.find import crop_face
from data_pipeline.faces.locate import locate_face
from data_pipeline.pictures.listing import named_images
from data_pipeline.pictures.reading import load_image, load_mask
from data_pipeline.pictures.transforms import square_face_crop
from data_pipeline.records.schema import MAX_REFERENCES
from data_pipeline.text_files import read_json
from persongen_jax.face_detectors import open_reference_detector
from persongen_jax.training.trained import saved_config
from persongen_jax.weights.licences import say

log = logging.getLogger(__name__)

Box = tuple[float, ...]
"""(x0, y0, x1, y1) in pixels; () for unknown."""


def read_references(
    items: list[str],
    weights: str | Path,
    *,
    base: str | Path,
    detector: str,
    crop: bool,
    boxes: Sequence[tuple[float, ...]] = (),
    show: str = "",
) -> tuple[list, list | None]:
    """Square face crops of each person, unless ``weights`` read others; a mask each, or None.

    Args:
        items: FILE or FILE@REGION; a folder stands for its images.
        base: as open_reference_detector's, like ``detector``.
        crop: False if they are crops already, or were whole images in training.
        boxes: the faces' places (x0, y0, x1, y1), one for each file in the order of ``items``; ()
            to find them.
        show: what they show, if that is not what the weights say: face, whole or aligned.

    Raises:
        ValueError: counts that do not match, no face found.
    """
    people = group_references(items, boxes)
    for files in people.values():
        if len(files) > MAX_REFERENCES:
            raise ValueError(
                f"{len(files)} references ({files[0][0]}, …): give one to {MAX_REFERENCES} of a "
                "person"
            )
    count = sum(map(len, people.values()))
    if boxes and (len(boxes) != count or not crop):
        if not crop:
            raise ValueError("--face-box: --no-crop cuts no face; give one of the two")
        raise ValueError(
            f"{len(boxes)} times --face-box, but there are {count} references; give one for each"
        )
    opened = [[(p, load_image(p), box) for p, box in files] for files in people.values()]
    show = (show or references_show(weights)) if crop else ""
    if show == "masked":
        log.warning(
            "%s was trained on references with grey around the person; nothing here cuts a person "
            "out: give pictures with a plain grey background, or expect more of their surroundings",
            weights,
        )
    if show == "whole" and not boxes:
        log.warning(
            "%s reads whole images as references, so they are not cropped; --face-box crops them",
            weights,
        )
        crop = False
    if not crop:
        crops = [[image for _, image, _ in person] for person in opened]
    elif boxes:
        crops = [[cut_at(image, path, box) for path, image, box in p] for p in opened]
    else:
        finder = open_reference_detector(base, detector)
        if finder.licence:
            say(f"faces are found by {finder.licence}")
        crops = [[crop_face(image, str(path), finder) for path, image, _ in p] for p in opened]
    regions = None if None in people else [load_mask(mask) for mask in people]
    return crops, regions


def read_photographs(items: list[str]) -> list[list[np.ndarray]]:
    """The references whole, per person, for methods that read them so next to the faces."""
    return [[load_image(path) for path, _ in own] for own in group_references(items).values()]


def locate_faces(
    items: list[str],
    *,
    base: str | Path,
    detector: str,
    crop: bool,
    boxes: Sequence[tuple[float, ...]] = (),
) -> list[list[Face]] | None:
    """The references' faces by person, with landmarks; None if they are aligned crops already.

    The arguments are read_references'.
    """
    if not crop:
        return None
    finder = open_reference_detector(base, detector)
    return [
        [locate_face(path, str(path), finder, box) for path, box in own]
        for own in group_references(items, boxes).values()
    ]


def group_references(
    items: list[str], boxes: Sequence[Box] = ()
) -> dict[Path | None, list[tuple[Path, Box]]]:
    """FILE or FILE@REGION: (image, its box) by their region's file; names may contain an @.

    A folder stands for its images. ``boxes``: in the order of the images; () for none.
    """
    people: dict[Path | None, list[tuple[Path, Box]]] = {}
    places = iter(boxes)
    for item in items:
        front, at, end = item.rpartition("@")
        alone = not at or Path(item).exists()
        path, mask = (item, None) if alone else (front, Path(end))
        files = named_images([path]) if Path(path).is_dir() else [path]
        pairs = [(Path(file), next(places, ())) for file in files]
        people.setdefault(mask, []).extend(pairs)
    if None in people and len(people) > 1:
        raise ValueError(
            f"--reference {people[None][0][0]}: others have a region (FILE@REGION); give all of "
            "them one, or none"
        )
    return people


def parse_box(text: str) -> tuple[float, ...]:
    """X0,Y0,X1,Y1 as numbers."""
    try:
        x0, y0, x1, y1 = (float(part) for part in text.split(","))
    except ValueError as error:
        raise ValueError(f"--face-box {text}: give four numbers, X0,Y0,X1,Y1") from error
    if not all(map(math.isfinite, (x0, y0, x1, y1))):
        raise ValueError(f"--face-box {text}: give four numbers, X0,Y0,X1,Y1")
    if not (x0 < x1 and y0 < y1):
        raise ValueError(f"--face-box {text}: it is empty; X0 < X1 and Y0 < Y1 are needed")
    return x0, y0, x1, y1


def cut_at(image: np.ndarray, path: Path, box: tuple[float, ...]) -> np.ndarray:
    """The square crop of a reference around a face whose place is known."""
    height, width = image.shape[:2]
    if box[0] >= width or box[1] >= height or box[2] <= 0 or box[3] <= 0:
        raise ValueError(
            f"--face-box {box}: lies outside of {path}, which has {width}x{height} pixels"
        )
    x0, y0, x1, y1 = box
    if min(x1 - x0, y1 - y0) < 2:
        raise ValueError(f"--face-box {box}: has less than 2 pixels; give pixels, not fractions")
    return square_face_crop(image, (max(x0, 0), max(y0, 0), min(x1, width), min(y1, height)))


def references_show(weights: str | Path) -> str:
    """What the references of a run show: face, whole or masked; "" for a file."""
    config = saved_config(weights) if Path(weights).is_dir() else None
    return "" if config is None else config.get("references", "")


def read_input(path: str) -> Any:
    """An image, uint8 [h, w, 3]; or the contents of a *.json file."""
    if Path(path).suffix.lower() == ".json":
        return read_json(path)
    return load_image(path)
