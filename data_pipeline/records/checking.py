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
from data_pipeline.records.manifest import FILE_NAME, ManifestError, read_manifest
from data_pipeline.records.schema import Record
from data_pipeline.records.shard_reading import INDEX, is_shards
from data_pipeline.records.sources import PEOPLE, make_manifest
from data_pipeline.text_files import parse_json_lines, read_lines, read_text

SHOWN = 20


def check_source(data: str, trigger_word: str = "img", **options: object) -> list[str]:
    """Lines on what a source of records holds (sources.py); only folders have to be checked.

    Raises:
        ManifestError, SourceError: see check_manifest and sources.make_manifest.
    """
    folder = Path(str(data))
    if str(data).startswith(PEOPLE) or not folder.is_dir() or is_shards(folder):
        return []  # opening it says all that there is to say, and reads no image
    if not (folder / FILE_NAME).is_file() and list_images(folder):
        make_manifest(folder, trigger_word)
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
    """Lines on what a manifest holds, if training can use it; options as for read_manifest.

    Raises:
        ManifestError: lines that cannot be used, or images whose headers cannot be read.
    """
    counts: Counter = Counter()
    records = read_manifest(folder, trigger_word, counts, **options)  # type: ignore[arg-type]
    faults = header_faults(record.image for record in records)
    if faults:
        path = Path(folder) / FILE_NAME
        lines = _lines_of(path, faults)
        shown = [f"line {lines.get(file, '?')}: {fault}" for file, fault in faults.items()]
        more = [f"... and {len(shown) - SHOWN} more"] if len(shown) > SHOWN else []
        text = "\n  ".join([*shown[:SHOWN], *more])
        raise ManifestError(
            f"{path}: {len(faults)} images cannot be read; remove their lines, or make the "
            f"manifest again with `python -m data_pipeline.manifest {folder} --replace`\n  {text}"
        )
    return [describe(records), *(f"{what}: {n}" for what, n in counts.items() if n)]


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


def _lines_of(path: Path, files: Iterable[str]) -> dict[str, int]:
    """The first line that names each file, by its name as written there."""
    wanted = {Path(file).name: file for file in files}
    found: dict[str, int] = {}
    for number, line in enumerate(read_lines(path), 1):
        for name, file in wanted.items():
            if name in line:
                found.setdefault(file, number)
    return found
