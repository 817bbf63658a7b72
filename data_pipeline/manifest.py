"""A folder of photographs with ``manifest.jsonl``: one JSON object per line and photograph.

    {"identity": "anna", "image": "images/anna_1.jpg", "caption": "a woman img on a beach",
     "background": "a beach", "body": "wearing a red coat", "face_box": [120, 40, 260, 190]}

``background``, ``body`` and ``face_box`` may be left out. ``image`` is relative to the folder;
``face_box`` is (x0, y0, x1, y1) in pixels of the upright picture.
"""

import json
import logging
import math
import os
from collections import defaultdict
from pathlib import Path

from data_pipeline.schema import Record
from data_pipeline.transforms import ImageError, image_size
from persongen_jax.prompts import PromptError, split_at_trigger

log = logging.getLogger(__name__)

FILE_NAME = "manifest.jsonl"
REQUIRED, OPTIONAL = ("identity", "image", "caption"), ("background", "body", "face_box")
SHOWN_PROBLEMS = 20


class ManifestError(ValueError):
    """A manifest that cannot be used; the message counts the problems and names the lines."""


def read_manifest(folder, trigger_word: str = "img") -> list[Record]:
    """The records of ``<folder>/manifest.jsonl`` in the order of its lines.

    All problems are gathered into one ManifestError. Identities with a single picture are left out
    with a warning, because a reference must never be the target. A face box that reaches over the
    picture's edge is clipped to it.
    """
    path = Path(folder) / FILE_NAME
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise ManifestError(
            f"{path}: no such file; `python -m data_pipeline.sample_photos` makes an example"
        ) from None
    except UnicodeDecodeError as error:
        raise ManifestError(f"{path}: not UTF-8 text ({error})") from None

    records, problems, missing, unknown = [], [], [], set()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            record = _record(Path(folder), entry, trigger_word)
        except json.JSONDecodeError as error:
            problems.append(f"line {number}: not JSON ({error})")
        except (ManifestError, PromptError) as error:
            problems.append(f"line {number}: {error}")
        except FileNotFoundError as error:
            missing.append(f"line {number}: {error}")
        else:
            unknown |= entry.keys() - {*REQUIRED, *OPTIONAL}
            records.append(record)
    if unknown:
        log.warning("%s: keys without a meaning here are passed over: %s", path, sorted(unknown))
    if problems or missing:
        raise ManifestError(_report(path, problems, missing))
    return _serviceable(path, records)


def write_manifest(folder, records) -> Path:
    """Writes ``<folder>/manifest.jsonl``; the records' images have to lie in ``folder``."""
    folder = Path(folder)
    lines = []
    for record in records:
        image = Path(os.path.relpath(record.image, folder))
        if ".." in image.parts:
            raise ManifestError(f"{record.image}: lies outside {folder}; move it inside")
        entry = {"identity": record.identity, "image": image.as_posix(), "caption": record.caption}
        entry |= {key: getattr(record, key) for key in ("background", "body")}
        entry["face_box"] = None if record.face_box is None else list(record.face_box)
        kept = {key: value for key, value in entry.items() if value not in ("", None)}
        lines.append(json.dumps(kept, ensure_ascii=False) + "\n")
    path = folder / FILE_NAME
    partial = path.with_name(FILE_NAME + ".partial")
    partial.write_text("".join(lines), encoding="utf-8")
    partial.replace(path)  # a reader sees the old file or the new one, never half of one
    return path


def _record(folder: Path, entry, trigger_word: str) -> Record:
    if not isinstance(entry, dict):
        raise ManifestError(f"{type(entry).__name__} instead of an object {{...}}")
    absent = [key for key in REQUIRED if not entry.get(key)]
    if absent:
        raise ManifestError(f"missing or empty: {', '.join(absent)}")
    texts = {key: entry.get(key) or "" for key in (*REQUIRED, "background", "body")}
    for key, text in texts.items():
        if not isinstance(text, str):
            raise ManifestError(f"{key} is {text!r}; a text is needed")
    split_at_trigger(texts["caption"], trigger_word)

    # By name only: a link out of the folder was put there on purpose, a ".." may not have been.
    inside = Path(os.path.normpath(texts["image"]))
    if inside.is_absolute() or ".." in inside.parts:
        raise ManifestError(f"image {texts['image']!r} leads out of the folder")
    texts["image"] = str(folder / inside)
    if not (folder / inside).is_file():
        raise FileNotFoundError(texts["image"])
    box = entry.get("face_box")
    return Record(**texts, face_box=None if box is None else _face_box(box, texts["image"]))


def _face_box(box, image: str) -> tuple[float, float, float, float] | None:
    numbers = isinstance(box, list) and all(type(v) in (int, float) for v in box)
    if not numbers or len(box) != 4 or not all(math.isfinite(v) for v in box):
        raise ManifestError(f"face_box is {box!r}; four numbers [x0, y0, x1, y1] are needed")
    x0, y0, x1, y1 = box
    if x0 >= x1 or y0 >= y1:
        raise ManifestError(f"face_box {box} is empty; x0 < x1 and y0 < y1 are needed")
    try:
        height, width = image_size(image)
    except ImageError as error:
        # The loader passes over such files and counts them: one bad file must not stop a big run.
        log.warning("%s", error)
        return None
    if x1 <= 0 or y1 <= 0 or x0 >= width or y0 >= height:
        raise ManifestError(f"face_box {box} lies outside {image} ({width}x{height} pixels)")
    return max(x0, 0), max(y0, 0), min(x1, width), min(y1, height)


def _report(path: Path, problems: list[str], missing: list[str]) -> str:
    parts = [f"{path}: {len(problems) + len(missing)} lines cannot be used"]
    parts += problems[:SHOWN_PROBLEMS]
    if len(problems) > SHOWN_PROBLEMS:
        parts.append(f"... and {len(problems) - SHOWN_PROBLEMS} more of these")
    if missing:
        parts += [f"{len(missing)} image files are missing:", *missing]
    return "\n  ".join(parts)


def _serviceable(path: Path, records: list[Record]) -> list[Record]:
    """Without the identities that have one picture only."""
    images = defaultdict(set)
    for record in records:
        images[record.identity].add(record.image)
    single = {identity for identity, files in images.items() if len(files) < 2}
    if single:
        log.warning(
            "%s: %d identities with fewer than 2 pictures are left out: %s%s",
            path,
            len(single),
            ", ".join(sorted(single)[:SHOWN_PROBLEMS]),
            ", ..." if len(single) > SHOWN_PROBLEMS else "",
        )
    kept = [record for record in records if record.identity not in single]
    if not kept:
        raise ManifestError(
            f"{path}: no identity has two pictures ({len(records)} lines); training needs a "
            "reference besides the target"
        )
    return kept
