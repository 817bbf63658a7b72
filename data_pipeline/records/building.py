"""A manifest from a folder of photographs: whose they are, where the faces are, what they show."""

import os
from collections import Counter, defaultdict
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from data_pipeline.faces.detectors import Detection, open_detector
from data_pipeline.faces.detectors.base import area
from data_pipeline.faces.reading import FoundFaces, Networks, read_faces, terms_of
from data_pipeline.pictures.copies import near_copies, same_bytes
from data_pipeline.pictures.reading import load_image
from data_pipeline.records.captions import propose_caption
from data_pipeline.records.class_images import REPEATS
from data_pipeline.records.folders import Folder, FolderImage, read_folder
from data_pipeline.records.masks import NAME as MASK
from data_pipeline.records.schema import Record

SHOWN = 10  # files of a kind that are named
SURE = 0.9  # a score at which a face is upright
# By how much a turn has to be surer for a note, and for certainty: covered faces also gain by it.
SURER, CERTAIN = 0.05, 0.2
TURNS = {1: "anticlockwise", 3: "clockwise", 2: "by half"}  # quarter turns that are tried


@dataclass
class Built:
    """Records of a folder, and what was found while they were made.

    Attributes:
        records: one per image that can be used, in the order of their paths.
        layout: how the folder was read.
        left_out: why -> files, relative to the folder.
        notes: other lines.
    """

    records: list[Record]
    layout: str
    left_out: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    notes: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """The report."""
        people = Counter(record.identity for record in self.records)
        out = [f"{len(self.records)} images of {len(people)} people ({self.layout})"]
        out += [f"left out, {why}: {_some(files)}" for why, files in self.left_out.items()]
        single = [name for name, count in people.items() if count < 2]
        if single:
            out.append(
                f"with one image only; methods that read references leave them out: {_some(single)}"
            )
        return out + self.notes


def build_records(
    folder: str | os.PathLike,
    *,
    trigger_word: str = "img",
    class_word: str = "",
    detector: str = "auto",
    pose: str = "",
    keep_faceless: bool = False,
    workers: int | None = None,
) -> Built:
    """Read a folder (folders.py), find the faces, propose captions (captions.py).

    Args:
        class_word: what the people are, also where the folder or a caption says otherwise; "" takes
            it from these, else person.
        detector: as for data_pipeline.faces.detectors.open_detector.
        pose: MoveNet's file, for keypoints; "" for none.
        keep_faceless: keep images without a face, whose whole is then the reference.
        workers: processes; default: one per core.

    Raises:
        FolderError: no such folder, no image, or faulty metadata.
        FileNotFoundError, ImportError, ValueError: the detector; has the remedy.
    """
    root = Path(folder)
    found = read_folder(root)
    built = Built([], found.layout, notes=list(found.notes))
    images = _without_copies(root, found, built)
    networks = Networks(detector, pose=pose)
    built.notes += terms_of(networks)
    several, turned = [], defaultdict(list)
    faces = read_faces([image.path for image in images], networks, workers)
    for image, seen in zip(images, faces, strict=True):
        name = _relative(root, image.path)
        if seen.error:
            built.left_out["cannot be read"].append(name)
            built.notes.append(seen.error)
            continue
        face = max(seen.faces, key=area, default=None)
        turn, gain = _turn(image.path, detector, _score(seen.faces))
        if gain > CERTAIN:
            built.left_out[f"not upright, turn it {turn}"].append(name)
            continue
        if turn:
            turned[turn].append(name)
        if face is None and not keep_faceless:
            built.left_out["no face found"].append(name)
            continue
        if len(seen.faces) > 1:
            several.append(name)
        built.records.append(_record(image, seen, face, class_word, trigger_word))
    for turn, names in turned.items():
        built.notes.append(f"perhaps not upright, better turned {turn}; look at: {_some(names)}")
    if several:
        built.notes.append(f"several faces, of which the largest is taken: {_some(several)}")
    return built


def _record(
    image: FolderImage,
    seen: FoundFaces,
    face: Detection | None,
    class_word: str,
    trigger_word: str,
) -> Record:
    height, width = seen.size or (1, 1)
    share = box = points = None
    if face is not None:
        x0, y0, x1, y1 = (round(v, 1) for v in face.box)
        box = max(x0, 0.0), max(y0, 0.0), min(x1, float(width)), min(y1, float(height))
        if box[0] >= box[2] or box[1] >= box[3]:  # of a face beyond the edge, almost
            return _record(image, seen, None, class_word, trigger_word)
        share = (box[3] - box[1]) / height
        if face.landmarks is not None:
            points = tuple((round(float(x), 1), round(float(y), 1)) for x, y in face.landmarks)
    word = class_word or image.class_word
    caption, word = propose_caption(image.caption, word, share, trigger_word)
    record = Record(
        image.path,
        image.identity,
        caption,
        face_box=box,
        class_word=word,
        landmarks=points,
        images={MASK: image.mask} if image.mask else None,
        extra={REPEATS: image.repeats} if image.repeats > 1 else None,
    )
    if seen.pose is None:
        return record
    joints, visible = seen.pose.body()
    keypoints = tuple((round(float(x), 1), round(float(y), 1)) for x, y in joints)
    return replace(record, keypoints=keypoints, visibility=tuple(map(bool, visible)))


def _without_copies(root: Path, found: Folder, built: Built) -> list[FolderImage]:
    """The images without byte-identical copies; near copies, and those of two people, are told."""
    gone = [image for image in found.images if not os.path.isfile(image.path)]
    for image in gone:  # a link that leads nowhere
        built.left_out["cannot be read"].append(_relative(root, image.path))
    images = [image for image in found.images if image not in gone]
    of_person = defaultdict(list)
    for image in images:
        of_person[image.identity].append(image.path)
    copies: dict[str, str] = {}
    for files in of_person.values():
        copies |= same_bytes(files)
    for copy, first in copies.items():
        why = f"a copy of {_relative(root, first)}"
        built.left_out[why].append(_relative(root, copy))
    kept = [image for image in images if image.path not in copies]
    whose = {image.path: image.identity for image in kept}
    shared = same_bytes(whose)
    near = near_copies([[f for f in files if f not in copies] for files in of_person.values()])
    for pairs, what in ((shared, "the same image of two people"), (near, "look like copies")):
        if pairs:
            named = [f"{_relative(root, a)} and {_relative(root, b)}" for a, b in pairs.items()]
            built.notes.append(f"{what}: {_some(named)}")
    return kept


def _turn(path: str, detector: str, score: float) -> tuple[str, float]:
    """How to turn an image so that the face is upright, and the gain in score; "" if it is.

    Detectors also find faces that lie on their side or head, with landmarks as if they did not, but
    are less sure of them.
    """
    if score >= SURE:
        return "", 0.0
    image = load_image(Path(path))
    turned = [np.ascontiguousarray(np.rot90(image, turn)) for turn in TURNS]
    scores = [_score(faces) for faces in open_detector(detector).find(turned)]
    best = int(np.argmax(scores))
    gain = scores[best] - score
    return (list(TURNS.values())[best], gain) if gain > SURER else ("", 0.0)


def _score(faces: list[Detection]) -> float:
    return max((face.score for face in faces), default=0.0)


def _relative(root: Path, path: str) -> str:
    return Path(os.path.relpath(path, root)).as_posix()


def _some(names: list[str]) -> str:
    more = f", … ({len(names)} in all)" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
