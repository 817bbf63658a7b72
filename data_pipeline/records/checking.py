"""Checks a data set before any model is loaded: all faults at once, with their lines."""

import contextlib
import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from data_pipeline.pictures.listing import list_images
from data_pipeline.pictures.reading import ImageError, image_size
from data_pipeline.records import manifest
from data_pipeline.records.manifest import FILE_NAME, ManifestError, find_file, read_manifest
from data_pipeline.records.schema import Record
from data_pipeline.records.shard_reading import INDEX, is_shards
from data_pipeline.records.sources import PEOPLE, make_manifest
from data_pipeline.text_files import (
    TextError,
    parse_json,
    parse_json_lines,
    read_lines,
    read_text,
)

SHOWN = 20


def check_source(
    data: str, trigger_word: str = "img", *, keep_faceless: bool = False, **options: object
) -> list[str]:
    """Lines on what a source of records holds (sources.py); only folders have to be checked.

    Args:
        keep_faceless: see sources.make_manifest. options: of read_manifest.

    Raises:
        ManifestError, SourceError: see check_manifest and sources.make_manifest.
    """
    folder = Path(str(data))
    if str(data).startswith(PEOPLE) or not folder.is_dir() or is_shards(folder):
        return []  # opening it says all that there is to say, and reads no image
    if not (folder / FILE_NAME).is_file() and list_images(folder):
        make_manifest(folder, trigger_word, keep_faceless)
    with _silent(manifest.log):  # opening the source warns of the same
        return check_manifest(folder, trigger_word, **options)


@contextlib.contextmanager
def _silent(log: logging.Logger) -> Iterator[None]:
    """Without the logger's warnings."""
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


def check_manifest(folder: str | Path, trigger_word: str = "img", **options: object) -> list[str]:
    """A line on what a manifest holds, if training can use it; options as for read_manifest.

    Raises:
        ManifestError: lines that cannot be used, or images whose headers cannot be read.
    """
    path, lines, records = Path(folder) / FILE_NAME, "", []
    try:
        records = read_manifest(folder, trigger_word, Counter(), **options)  # type: ignore[arg-type]
    except ManifestError as error:
        lines = str(error)
    numbers = _named_images(path)
    faults = header_faults(numbers)
    if not faults:
        if lines:
            raise ManifestError(lines)
        return [describe(records)]
    shown = [f"line {numbers[file]}: {fault}" for file, fault in faults.items()]
    more = [f"... and {len(shown) - SHOWN} more"] if len(shown) > SHOWN else []
    text = "\n  ".join([*shown[:SHOWN], *more])
    raise ManifestError(
        f"{lines}{chr(10) if lines else ''}{path}: {len(faults)} images cannot be read; remove "
        f"their lines, or make the manifest again with `python -m data_pipeline.manifest {folder} "
        f"--replace`\n  {text}"
    )


def has_face_boxes(data: str) -> bool:
    """Whether any image of a source of records has a face box."""
    folder = Path(str(data))
    for name in (FILE_NAME, INDEX):
        if (folder / name).is_file():
            entries = parse_json_lines(read_text(folder / name), folder / name)
            return any(isinstance(e, dict) and e.get("face_box") for _, e in entries)
    return True  # drawn people


def header_faults(files: Iterable[str]) -> dict[str, str]:
    """The images whose headers cannot be read, and why."""
    names = list(dict.fromkeys(files))

    def fault(name):
        try:
            image_size(name)
        except ImageError as error:
            return str(error)
        return ""

    with ThreadPoolExecutor() as pool:
        found = dict(zip(names, pool.map(fault, names), strict=True))
    return {name: why for name, why in found.items() if why}


def describe(records: list[Record]) -> str:
    """One line: how many images, people, face boxes."""
    people = len({record.identity for record in records})
    boxes = sum(record.face_box is not None for record in records)
    without = f", {len(records) - boxes} of them without a face box" if boxes < len(records) else ""
    return f"{len(records)} images of {people} people{without}"


def _named_images(path: Path) -> dict[str, int]:
    """The files that a manifest names and that exist, and the first line that names each."""
    found: dict[str, int] = {}
    if not path.is_file():
        return found
    for number, line in enumerate(read_lines(path), 1):
        try:
            entry = parse_json(line, path, number) if line.strip() else {}
            more = entry.get("images") or {}
            names = [entry.get("image"), *more.values()]
            files = [find_file(path.parent, "image", name) for name in names if name]
        except (TextError, ManifestError, FileNotFoundError, AttributeError):
            continue  # which reading the manifest tells
        for file in files:
            found.setdefault(file, number)
    return found
