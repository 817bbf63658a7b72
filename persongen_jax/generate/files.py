"""The files that generate reads: references and other inputs.

A published FaceID file was trained on aligned faces, and its projection does not know a
recogniser's embedding of any other crop. All other weights, including runs of this project, read
square crops (data_pipeline/faces/find.py).
"""

from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.faces.align import align_face
from data_pipeline.faces.detectors import Detector
from data_pipeline.faces.find import NoFaceFound, crop_face
from data_pipeline.pictures.reading import load_image, load_mask
from data_pipeline.records.schema import MAX_REFERENCES
from data_pipeline.text_files import read_json
from persongen_jax.face_detectors import open_reference_detector
from persongen_jax.weights.formats.ip_adapter import is_ip_adapter, read_ip_adapter


def read_references(
    items: list[str], weights: str | Path, *, base: str | Path, detector: str, crop: bool
) -> tuple[list, list | None]:
    """Face crops of each person, as the method's ``weights`` need them; and a mask each, or None.

    Args:
        items: FILE or FILE@REGION.
        base: as open_reference_detector's, like ``detector``.
        crop: False if they are crops already.

    Raises:
        ValueError: counts that do not match, no face found, a detector that cannot align.
    """
    people = group_references(items)
    for paths in people.values():
        if len(paths) > MAX_REFERENCES:
            raise ValueError(f"{len(paths)} references: give one to {MAX_REFERENCES}")
    opened = [[(path, load_image(path)) for path in paths] for paths in people.values()]
    if not crop:
        crops = [[image for _, image in person] for person in opened]
    else:
        finder = open_reference_detector(base, detector)
        cut = align_reference if wants_aligned_faces(weights) else crop_face
        crops = [[cut(image, str(path), finder) for path, image in person] for person in opened]
    regions = None if None in people else [load_mask(mask) for mask in people]
    return crops, regions


def group_references(items: list[str]) -> dict[Path | None, list[Path]]:
    """FILE or FILE@REGION: the images by their region's file; names may contain an @."""
    people = {}
    for item in items:
        front, at, end = item.rpartition("@")
        alone = not at or Path(item).exists()
        path, mask = (item, None) if alone else (front, Path(end))
        people.setdefault(mask, []).append(Path(path))
    if None in people and len(people) > 1:
        raise ValueError(
            f"--reference {people[None][0]}: others have a region (FILE@REGION); give all of them "
            "one, or none"
        )
    return people


def wants_aligned_faces(weights: str | Path) -> bool:
    """Whether ``weights`` is a FaceID file."""
    if not Path(weights).is_file() or not is_ip_adapter(weights):
        return False
    with read_ip_adapter(weights) as file:
        return file.kind == "faceid"


def align_reference(image: np.ndarray, name: str, detector: Detector) -> np.ndarray:
    """Align the largest face of ``image`` [h, w, 3] to ArcFace's template, [112, 112, 3].

    Raises:
        ValueError: a detector that finds no landmarks.
        NoFaceFound: in the image ``name``.
    """
    if not detector.gives_landmarks:
        raise ValueError(
            f"--detector {detector.name}: it finds no landmarks, which FaceID's references are "
            "aligned by; give --detector insightface or keypoints:DIR, or aligned crops of 112 "
            "pixels and --no-crop"
        )
    (found,) = detector.detect([image])
    if found is None:
        raise NoFaceFound(
            f"no face found in {name} ({image.shape[1]}x{image.shape[0]} pixels, detector "
            f"{detector.name}); FaceID needs aligned crops: give another image, or an aligned "
            "crop of 112 pixels and --no-crop"
        )
    return align_face(image, np.asarray(found.landmarks))


def read_input(path: str) -> Any:
    """An image, uint8 [h, w, 3]; or the contents of a *.json file."""
    if Path(path).suffix.lower() == ".json":
        return read_json(path)
    return load_image(path)
