"""The files that generate reads and writes: photographs, other inputs, and images with their notes.

A published FaceID file was trained on aligned faces: a recogniser's embedding of any other crop is
not what its projection knows. All other weights, runs of this project among them, read square crops
(data_pipeline/faces/find.py).
"""

import json
import os
import re
from pathlib import Path

from data_pipeline.faces.align import align_face
from data_pipeline.faces.find import NoFaceFound, crop_face
from data_pipeline.pictures.reading import load_image, load_mask
from data_pipeline.records.schema import MAX_REFERENCES
from data_pipeline.text_files import read_json
from persongen_jax.face_detectors import open_reference_detector
from persongen_jax.weights.formats.ip_adapter import is_ip_adapter, read_ip_adapter


def read_references(items, weights, *, base, detector: str, crop: bool) -> tuple[list, list | None]:
    """Face crops of each person, as the method's ``weights`` want them; and a mask each, or None.

    Args:
        items: FILE or FILE@REGION.
        base: as open_reference_detector's, like ``detector``.
        crop: False if they are crops already.

    Raises:
        ValueError: numbers that do not fit, no face found, a detector that cannot align.
    """
    people = group_references(items)
    for paths in people.values():
        if len(paths) > MAX_REFERENCES:
            raise ValueError(f"{len(paths)} references: give one to {MAX_REFERENCES}")
    crops = [[(path, load_image(path)) for path in paths] for paths in people.values()]
    if not crop:
        crops = [[image for _, image in person] for person in crops]
    else:
        finder = open_reference_detector(base, detector)
        cut = align_reference if wants_aligned_faces(weights) else crop_face
        crops = [[cut(image, str(path), finder) for path, image in person] for person in crops]
    regions = None if None in people else [load_mask(mask) for mask in people]
    return crops, regions


def group_references(items: list[str]) -> dict[Path | None, list[Path]]:
    """FILE or FILE@REGION: the photographs by their region's file; an @ may be part of a name."""
    people = {}
    for item in items:
        path, at, mask = item.rpartition("@")
        alone = not at or Path(item).exists()
        path, mask = (item, None) if alone else (path, Path(mask))
        people.setdefault(mask, []).append(Path(path))
    if None in people and len(people) > 1:
        raise ValueError(
            f"--reference {people[None][0]}: others have a region (FILE@REGION); give all of them "
            "one, or none"
        )
    return people


def wants_aligned_faces(weights) -> bool:
    """Whether ``weights`` is a FaceID file."""
    if not Path(weights).is_file() or not is_ip_adapter(weights):
        return False
    with read_ip_adapter(weights) as file:
        return file.kind == "faceid"


def align_reference(image, name: str, detector):
    """The largest face of ``image`` [h, w, 3] on ArcFace's template, [112, 112, 3].

    Raises:
        ValueError: a detector that gives no landmarks.
        NoFaceFound: of the picture ``name``.
    """
    if not detector.gives_landmarks:
        raise ValueError(
            f"--detector {detector.name}: it gives no landmarks, by which FaceID's references are "
            "aligned; give --detector insightface or keypoints:DIR, or aligned crops of 112 "
            "pixels and --no-crop"
        )
    (found,) = detector.detect([image])
    if found is None:
        raise NoFaceFound(
            f"no face found in {name} ({image.shape[1]}x{image.shape[0]} pixels, detector "
            f"{detector.name}); FaceID needs aligned crops: give another picture, or an aligned "
            "crop of 112 pixels and --no-crop"
        )
    return align_face(image, found.landmarks)


def read_input(path: str):
    """An image, uint8 [h, w, 3]; or what a *.json file holds."""
    if Path(path).suffix.lower() == ".json":
        return read_json(path)
    return load_image(path)


class ImageFolder:
    """Saves PNGs one after the other, numbered on from what is there: nothing is overwritten.

    The folder is made with the first image.

    Raises:
        OSError: no folder can be there, or it may not be written; no image has to be made for that.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        if not there.is_dir():
            raise NotADirectoryError(f"{folder}: {there} is a file; name another folder for images")
        if not os.access(there, os.W_OK | os.X_OK):
            raise PermissionError(f"{folder}: {there} may not be written to; name another folder")
        numbered = (path.stem for path in folder.glob("*.png"))
        taken = [int(stem) for stem in numbered if re.fullmatch("[0-9]+", stem)]
        self._next = max(taken, default=-1) + 1

    def save(self, image, note: dict) -> Path:
        """``image`` uint8 [h, w, 3]; ``note`` goes into the file as text chunks."""
        from PIL import Image, PngImagePlugin

        self.folder.mkdir(parents=True, exist_ok=True)
        info = PngImagePlugin.PngInfo()
        for key, value in note.items():
            info.add_itxt(key, value if isinstance(value, str) else json.dumps(value))
        path = self.folder / f"{self._next:05d}.png"
        try:
            Image.fromarray(image).save(path, pnginfo=info)
        except OSError as error:
            path.unlink(missing_ok=True)  # no half of an image
            raise OSError(f"{path}: cannot be written ({error.strerror or error})") from error
        self._next += 1
        return path
