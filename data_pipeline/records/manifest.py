"""A folder of images with ``manifest.jsonl``: one JSON object per line and image.

    {"identity": "anna", "image": "images/anna_1.jpg", "caption": "a woman img on a beach",
     "background": "a beach", "body": "wearing a red coat", "face_box": [120, 40, 260, 190]}

``identity``, ``image`` (relative to the folder) and ``caption`` are required; the other fields of
data_pipeline.records.schema.Record are optional: ``background``, ``body``, ``face_box``,
``class_word``, ``landmarks``, ``keypoints``, ``visibility``, ``original_size``, ``crop``,
``group`` (of the person, {"age": "old"}), and ``images``, files that belong to the image: {"pose":
"poses/anna_1.png"}. Any other key is kept for the fields that read it
(data_pipeline/examples/fields.py); unread keys are reported when training opens.
"""

import json
import logging
import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from data_pipeline.files import write_text
from data_pipeline.pictures.copies import NEAR_LIMIT, near_copies, same_bytes
from data_pipeline.pictures.reading import ImageError, image_size
from data_pipeline.prompts import PromptError, split_at_trigger
from data_pipeline.records.groups import Group, read_group
from data_pipeline.records.names import look_alikes, plain_name
from data_pipeline.records.schema import Record, to_entry
from data_pipeline.text_files import TextError, parse_json, read_lines

log = logging.getLogger(__name__)

FILE_NAME = "manifest.jsonl"
REQUIRED, TEXTS = ("identity", "image", "caption"), ("background", "body", "class_word")
SHOWN_PROBLEMS = 20
SMALLEST_BOX = 2  # pixels, the side of a face box
SPACED_LETTER = "[A-Za-z\u00c0-\u024f\u0370-\u052f]"  # Latin, Greek, Cyrillic

# What read_manifest counts, in addition to the records.
CLIPPED, DROPPED = "boxes clipped at the image's edge", "boxes outside the image dropped"
SINGLE = "people with a single image left out"
COPIES = "copies of an image under another name treated as that image"
# What describes the pixels, and so applies to every copy.
PLACES = ("face_box", "landmarks", "keypoints", "visibility", "original_size", "crop")


class ManifestError(ValueError):
    """An unusable manifest; the message counts the problems and names the lines."""


def read_manifest(
    folder: str | Path,
    trigger_word: str = "img",
    counts: Counter | None = None,
    *,
    marked: bool = True,
    least: int = 2,
) -> list[Record]:
    """The records of ``<folder>/manifest.jsonl`` in the order of its lines.

    ``trigger_word`` must appear in every caption; with ``marked=False`` it may be missing.
    ``least``: the least number of images per person, 2 if another image serves as the reference.

    All problems are collected into one ManifestError. Four things are fixed and logged with their
    number (added to ``counts``, by the names above): a face box that reaches over the image's edge
    is clipped to it, one that lies wholly outside is dropped, a file with the same bytes as another
    of the identity counts as that one, and an identity with too few images is left out, because a
    reference must never be the target. A warning lists files that only look like copies.
    """
    path = Path(folder) / FILE_NAME
    try:
        lines = read_lines(path)
    except FileNotFoundError:
        raise ManifestError(
            f"{path}: no such file; `python -m data_pipeline.manifest {folder}` makes it of a "
            "folder of photographs"
        ) from None
    except TextError as error:
        raise ManifestError(str(error)) from None

    records, problems, missing, changed = [], [], [], defaultdict(list)
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            entry = parse_json(line, path, number)
            record, changes = _record(Path(folder), entry, trigger_word if marked else None)
        except TextError as error:
            problems.append(str(error).removeprefix(f"{path} "))
        except ManifestError as error:
            problems.append(f"line {number}: {error}")
        except PromptError as error:
            problems.append(f"line {number}: {entry['image']}: {error}")
        except FileNotFoundError as error:
            missing.append(f"line {number}: {error}")
        else:
            records.append(record)
            for change in changes:
                changed[change].append(f"line {number}")
    if problems or missing:
        raise ManifestError(_report(path, problems, missing))
    for line in look_alikes(record.identity for record in records):
        log.warning("%s: %s", path, line)
    counts = Counter() if counts is None else counts
    for change, places in changed.items():
        counts[change] += len(places)
        log.warning("%s: %s: %d (%s)", path, change, len(places), _first_names(places))
    return usable_records(_without_copies(records, path, counts), path, counts, least)


def write_manifest(folder: str | Path, records: Iterable[Record]) -> Path:
    """Write ``<folder>/manifest.jsonl``; all of the records' files must be in ``folder``."""
    folder = Path(folder)
    lines = []
    for record in records:
        image = _inside(folder, record.image)
        entry = {"identity": record.identity, **to_entry(record), "image": image}
        entry |= entry.pop("extra", {})
        if record.images:
            entry["images"] = {name: _inside(folder, f) for name, f in record.images.items()}
        lines.append(json.dumps(entry, ensure_ascii=False) + "\n")
    path = folder / FILE_NAME
    write_text(path, "".join(lines))
    return path


def _inside(folder: Path, file: str) -> str:
    """The file's path relative to ``folder``; ManifestError if it is elsewhere."""
    path = Path(os.path.relpath(file, folder))
    if ".." in path.parts:
        raise ManifestError(f"{file}: lies outside {folder}; move it inside")
    return path.as_posix()


def _record(folder: Path, entry, trigger_word: str | None) -> tuple[Record, list[str]]:
    """The record of a line, and what had to be changed in it."""
    if not isinstance(entry, dict):
        raise ManifestError(f"{type(entry).__name__} instead of an object {{...}}")
    absent = [key for key in REQUIRED if not entry.get(key)]
    if absent:
        raise ManifestError(f"missing or empty: {', '.join(absent)}")
    texts: dict[str, Any] = {key: entry.get(key) or "" for key in (*REQUIRED, *TEXTS)}
    for key, text in texts.items():
        if not isinstance(text, str):
            raise ManifestError(f"{key} is {text!r}; give a text")
    if trigger_word is not None:
        before, _ = split_at_trigger(texts["caption"], trigger_word)
        # Not a part of another word, in scripts with blanks between words.
        word = re.escape(texts["class_word"])
        if word and not re.search(rf"(?<!{SPACED_LETTER}){word}$", before, re.IGNORECASE):
            raise ManifestError(
                f"class_word {texts['class_word']!r} does not precede the trigger word in "
                f'the caption "{texts["caption"]}"'
            )
    texts["identity"] = plain_name(texts["identity"])
    texts["image"] = find_file(folder, "image", texts["image"])
    face_box, changes = _face_box(entry, texts["image"])
    points: dict[str, Any] = {
        "landmarks": _numbers(entry, "landmarks", (5, 2)),
        "keypoints": _numbers(entry, "keypoints", (12, 2)),
        "visibility": _visibility(entry),
    }
    more: dict[str, Any] = {"images": _images(folder, entry), "group": _group(entry)}
    known = {field.name for field in fields(Record)} - {"extra"}
    more["extra"] = {key: value for key, value in entry.items() if key not in known} or None
    return Record(**texts, face_box=face_box, **points, **_origin(entry), **more), changes


def find_file(folder: Path, key: str, name: object) -> str:
    """The path of a file that a line names; FileNotFoundError if it does not exist."""
    if not isinstance(name, str) or not name:
        raise ManifestError(f"{key} is {name!r}; a file's name is needed")
    first = ""
    for spelled in _spellings(folder, name):
        # By name only: a link out of the folder was put there on purpose, a ".." may not have been.
        inside = Path(os.path.normpath(spelled))
        if inside.is_absolute() or ".." in inside.parts:
            raise ManifestError(f"{key} {name!r} leads out of the folder")
        try:
            if (folder / inside).is_file():
                return str(folder / inside)
        except OSError as error:
            raise ManifestError(f"{key} {name[:40]!r}…: {error.strerror}") from None
        first = first or str(folder / inside)
    raise FileNotFoundError(first)


def _spellings(folder: Path, name: str) -> list[str]:
    """A file's name as written, then as other systems write it: Windows' backslashes, the Mac's
    decomposed accents, a whole path into the folder."""
    whole = os.path.abspath(folder) + os.sep
    plain = name.replace("\\", "/")
    names = [name, plain, name.removeprefix(whole), plain.removeprefix(whole)]
    names += [unicodedata.normalize(form, n) for n in names for form in ("NFC", "NFD")]
    # What still leads out of the folder is refused only if no other spelling is inside.
    names = sorted(dict.fromkeys(names), key=lambda n: n.startswith("/"))
    return names


def _images(folder: Path, entry: dict) -> dict[str, str] | None:
    images = entry.get("images")
    if images is None:
        return None
    if not isinstance(images, dict):
        raise ManifestError(f'images is {images!r}; {{"NAME": FILE}} is needed')
    return {name: find_file(folder, f"images.{name}", file) for name, file in images.items()}


def _group(entry: dict) -> Group | None:
    try:
        return read_group(entry.get("group"))
    except ValueError as error:
        raise ManifestError(str(error)) from None


def _numbers(entry: dict, key: str, shape: tuple[int, ...]):
    """The entry's list as tuples of finite numbers of this shape; None if there is none."""
    values = entry.get(key)
    if values is None:
        return None

    def read(value, shape):
        if not shape:
            # Neither a sum of pixels nor a number that a float can hold is larger.
            if type(value) not in (int, float) or not abs(value) < 1e300:
                raise ValueError
            return value
        if not isinstance(value, list) or len(value) != shape[0]:
            raise ValueError
        return tuple(read(inner, shape[1:]) for inner in value)

    try:
        return read(values, shape)
    except ValueError:
        wanted = "four numbers [x0, y0, x1, y1]" if shape == (4,) else f"{_shape(shape)} numbers"
        raise ManifestError(f"{key} is {values!r}; {wanted} are needed") from None


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def _box(entry: dict, key: str):
    box = _numbers(entry, key, (4,))
    if box is not None and (box[0] >= box[2] or box[1] >= box[3]):
        raise ManifestError(f"{key} {list(box)} is empty; x0 < x1 and y0 < y1 are needed")
    return box


def _face_box(entry: dict, image: str):
    """The box inside the image, or None, and what was done to it."""
    box = _box(entry, "face_box")
    if box is None:
        return None, []
    try:
        height, width = image_size(image)
    except ImageError as error:
        # The loader skips such files and counts them: one bad file must not stop a big run.
        log.warning("%s", error)
        return None, []
    x0, y0, x1, y1 = box
    if min(x1 - x0, y1 - y0) < SMALLEST_BOX:
        raise ManifestError(
            f"face_box {list(box)} has less than {SMALLEST_BOX} pixels; are these fractions? "
            "Pixels are needed"
        )
    inside = max(x0, 0), max(y0, 0), min(x1, width), min(y1, height)
    if inside[0] >= inside[2] or inside[1] >= inside[3]:
        return None, [DROPPED]
    return inside, [] if inside == box else [CLIPPED]


def _visibility(entry: dict):
    flags = entry.get("visibility")
    if flags is None:
        return None
    if not isinstance(flags, list) or len(flags) != 12 or any(type(f) is not bool for f in flags):
        raise ManifestError(f"visibility is {flags!r}; 12 times true or false is needed")
    if entry.get("keypoints") is None:
        raise ManifestError("visibility without keypoints")
    return tuple(flags)


def _origin(entry: dict) -> dict:
    """``original_size`` and ``crop``: which part of which original the image shows."""
    size, crop = _numbers(entry, "original_size", (2,)), _box(entry, "crop")
    if size is not None and not all(type(side) is int and side > 0 for side in size):
        raise ManifestError(f"original_size is {list(size)}; whole [height, width] are needed")
    if crop is not None:
        if size is None:
            raise ManifestError("crop without original_size, the [height, width] of its original")
        if crop[0] < 0 or crop[1] < 0 or crop[2] > size[1] or crop[3] > size[0]:
            raise ManifestError(
                f"crop {list(crop)} exceeds its original ({size[1]}x{size[0]} pixels)"
            )
    return {"original_size": size, "crop": crop}


def _report(path: Path, problems: list[str], missing: list[str]) -> str:
    parts = [f"{path}: {len(problems) + len(missing)} lines cannot be used"]
    parts += problems[:SHOWN_PROBLEMS]
    if len(problems) > SHOWN_PROBLEMS:
        parts.append(f"... and {len(problems) - SHOWN_PROBLEMS} more of these")
    if missing:
        parts += [f"{len(missing)} image files are missing:", *missing]
    return "\n  ".join(parts)


def _counts_text(counts: Counter) -> str:
    return f"; {counts[COPIES]} {COPIES}" if counts[COPIES] else ""


def _first_names(names) -> str:
    return ", ".join(names[:SHOWN_PROBLEMS]) + (", ..." if len(names) > SHOWN_PROBLEMS else "")


def _without_copies(records: list[Record], path: Path, counts: Counter) -> list[Record]:
    """Every copy's record with the name of the first such file; no duplicates."""
    of_identity, copies = defaultdict(list), {}
    for record in records:
        of_identity[record.identity].append(record.image)
    for files in of_identity.values():
        copies |= same_bytes(files)
    firsts = [[file for file in files if file not in copies] for files in of_identity.values()]
    if sum(map(len, firsts)) > NEAR_LIMIT:
        log.warning(
            "%s: more than %d images: copies in another size or format are not searched for",
            path,
            NEAR_LIMIT,
        )
    near = near_copies(firsts)
    if near:
        log.warning(
            "%s: %d images look like others of the same person in another size or format; keep "
            "one of each, or a reference may be the target itself: %s",
            path,
            len(near),
            _pairs(near),
        )
    if not copies:
        return records
    counts[COPIES] += len(copies)
    log.warning("%s: %s: %d (%s)", path, COPIES, len(copies), _pairs(copies))
    same, kept = defaultdict(list), []
    for record in records:
        same[copies.get(record.image, record.image)].append(record)
    done = defaultdict(list)
    for record in records:
        image = copies.get(record.image, record.image)
        named = _filled_in(replace(record, image=image), same[image])
        if record.image in copies and named in done[image]:
            continue
        done[image].append(named)
        kept.append(named)
    return kept


def _filled_in(record: Record, twins: list[Record]) -> Record:
    """Fill in the face box, points and origin from other records of the same image."""
    found: dict[str, Any] = {
        name: next((value for twin in twins if (value := getattr(twin, name)) is not None), None)
        for name in PLACES
        if getattr(record, name) is None
    }
    return replace(record, **found)


def _pairs(copies: dict[str, str]) -> str:
    names = ((os.path.basename(copy), os.path.basename(first)) for copy, first in copies.items())
    return _first_names([f"{copy} is {first}" for copy, first in names])


def usable_records(
    records: list[Record], path: str | Path, counts: Counter, least: int = 2
) -> list[Record]:
    """Drop identities with fewer than ``least`` images; ManifestError if none is left."""
    images = defaultdict(set)
    for record in records:
        images[record.identity].add(record.image)
    single = sorted(identity for identity, files in images.items() if len(files) < least)
    counts[SINGLE] += len(single)
    if single:
        log.warning(
            "%s: %d identities with fewer than %d images are left out: %s",
            path,
            len(single),
            least,
            _first_names(single),
        )
    kept = [record for record in records if len(images[record.identity]) >= least]
    if not kept:
        raise ManifestError(
            f"{path}: no identity has {'two images' if least == 2 else 'an image'} "
            f"({len(records)} lines{_counts_text(counts)}); training needs a target, and where the "
            "method reads references another image of the same person"
        )
    return kept
