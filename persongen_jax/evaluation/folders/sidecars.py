"""Layouts that say in a file next to the images whose each is.

metadata.jsonl   {"file_name": "ann/0.png", "person": "ann", "prompt": "…", "seed": 42}, a line
                 for each image; without "person" it is the subfolder's; poses: see poses.py;
                 "group": "A" or {"age": "old"} is the person's
prompts.json     ["a photo of …", …] for files ann/003_42.png: person, number of the prompt from
                 0, seed; or {"beach": "a photo of …"} for ann/beach_42.png
"""

import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from data_pipeline.records.folders import FILE_KEYS, PERSON_KEYS
from data_pipeline.records.groups import read_group
from data_pipeline.records.names import plain_name
from data_pipeline.text_files import parse_json_lines, read_json, read_text
from persongen_jax.evaluation.folders.entries import Entry, Folder, LayoutError, of_text
from persongen_jax.evaluation.folders.poses import POSE_KEYS, read_pose

METADATA, PROMPTS = "metadata.jsonl", "prompts.json"
TEXT_KEYS = ("prompt", "text", "caption", "description")
OTHER_KEYS = ("seed", "group")
STEM = re.compile(r"(?P<prompt>.+)_(?:seed_?)?(?P<seed>\d+)")  # 003_42, beach_seed42
SHOWN = 3


def read_metadata(folder: Path, files: Sequence[str], name: str, alone: str) -> Folder:
    """The images that ``metadata.jsonl`` names.

    Args:
        files: all images, relative to the folder.
        name: of the folder.
        alone: whose images are that lie in no subfolder; "" if that is not known.

    Raises:
        LayoutError: a line without a file, or an image without a person.
    """
    path, there = folder / METADATA, set(files)
    found = Folder(name, folder, METADATA, [])
    unread: set[str] = set()
    for number, line in parse_json_lines(read_text(path), path):
        where = f"{path} line {number}"
        if not isinstance(line, dict):
            raise LayoutError(f'{where}: {{"file_name": …, "person": …, "prompt": …}} is needed')
        file = _first(line, FILE_KEYS)
        if not file:
            raise LayoutError(f"{where}: no {FILE_KEYS[0]}: name the image's file")
        file = Path(os.path.normpath(file)).as_posix()
        if file not in there:
            found.excluded[file] = f"{where} names it, and there is no such image"
            continue
        person = plain_name(_first(line, PERSON_KEYS)) or person_of(file, alone)
        if not person:
            raise LayoutError(f'{where}: whose image is it? Give it a "person"')
        seed = "" if line.get("seed") is None else str(line["seed"])
        pose = read_pose(line, folder, where)
        text = of_text(_first(line, TEXT_KEYS), seed=seed)
        try:
            group = read_group(line.get("group"))
        except ValueError as error:
            raise LayoutError(f"{where}: {error}") from None
        found.entries.append(Entry(file, person, **text, pose=pose, group=group))
        unread |= set(line) - {*FILE_KEYS, *PERSON_KEYS, *TEXT_KEYS, *POSE_KEYS, *OTHER_KEYS}
    if unread:
        found.notes.append(f"{METADATA}: not read: {', '.join(sorted(unread))}")
    named = Counter(entry.file for entry in found.entries)
    for file, lines in named.items():
        if lines > 1:
            raise LayoutError(f"{path}: {file} has {lines} lines; leave one of them")
    for file in sorted(there - set(named)):
        found.excluded[file] = f"{METADATA} has no line for it"
    return found


def read_prompts(folder: Path, files: Sequence[str], name: str, alone: str) -> Folder:
    """Images PERSON/PROMPT_SEED.png; the texts are in ``prompts.json``.

    Args and Raises: as read_metadata's; LayoutError also for texts that are none.
    """
    path = folder / PROMPTS
    texts = read_json(path)
    if isinstance(texts, list):
        texts = {str(i): text for i, text in enumerate(texts)}
    if not isinstance(texts, dict) or not all(isinstance(t, str) for t in texts.values()):
        raise LayoutError(f'{path}: give a list of prompts, or {{"name": "prompt", …}}')
    found = Folder(name, folder, PROMPTS, [])
    for file in files:
        match, person = STEM.fullmatch(Path(file).stem), person_of(file, alone)
        key = match["prompt"] if match else Path(file).stem
        text = texts.get(key, texts.get(_number(key)))
        if text is None:
            found.excluded[file] = f"{PROMPTS} has no prompt {key!r}: files are PROMPT_SEED.png"
        elif not person:
            raise LayoutError(f"{folder / file}: whose image is it? Put it into a person's folder")
        else:
            seed = match["seed"] if match else ""
            found.entries.append(Entry(file, person, **of_text(text, seed=seed)))
    return found


def person_of(file: str, alone: str) -> str:
    """The first subfolder's name; ``alone`` for an image that lies in none."""
    first, _, rest = file.partition("/")
    return plain_name(first) if rest else alone


def listed(names: Sequence[str]) -> str:
    """At most three of them: "a, b, c, …"."""
    return ", ".join(names[:SHOWN]) + (", …" if len(names) > SHOWN else "")


def _first(line: dict, keys: Sequence[str]) -> str:
    """The value of the first key that the line has, as a text."""
    return next((str(line[key]) for key in keys if line.get(key) not in (None, "")), "")


def _number(text: str) -> str:
    return str(int(text)) if text.isascii() and text.isdigit() else ""
