"""Sources of records: a folder of images, a folder of shards, or drawn people.

``config.data`` and the tools' ``--data`` accept three forms:

    path/to/photographs   a folder with a manifest.jsonl (data_pipeline/records/manifest.py), or one
                          that data_pipeline/records/folders.py reads, which then gets it
    path/to/shards        a folder written by data_pipeline.shards (data_pipeline/shards.py)
    people:in_train?identities=200&pictures=16&size=64      (data_pipeline/people.py)

Drawn people are rendered into memory at once; no TensorFlow, no files. The split's name may be
followed, in any order, by ``identities`` (200) and ``pictures`` (16) of each; ``seed`` (0) of the
people; ``size`` (64), the side in pixels; ``framing`` (mixed), or portrait, or figures, which are
half and full ones; ``first_identity`` (0), the number of the first person, and ``first_picture``
(0), that of their first image. Images with the same number have the same variation, so sets that
should differ need disjoint numbers: a set uses ``identities`` x ``pictures`` of them.
"""

import os
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl

import numpy as np

from data_pipeline.pictures.copies import content_digest
from data_pipeline.pictures.kept import from_memory
from data_pipeline.pictures.listing import list_images
from data_pipeline.pictures.reading import load_image
from data_pipeline.records.manifest import FILE_NAME, read_manifest, write_manifest
from data_pipeline.records.schema import Record
from data_pipeline.records.shard_reading import content_of_shards, is_shards, open_shards

PEOPLE = "people:"
NUMBERS = {"identities": 200, "pictures": 16, "seed": 0, "size": 64}
NUMBERS |= {"first_identity": 0, "first_picture": 0}
LEAST = {"identities": 1, "pictures": 2, "size": 16}  # two images: a target and a reference
# Weights of portraits, half and full figures; None: as data_pipeline/drawing/people.py mixes them.
FRAMINGS = {"mixed": None, "portrait": (1, 0, 0), "figures": (0, 1, 1)}
RENDER_BATCH = 1024


@dataclass
class Opened:
    """What examples are made from.

    Attributes:
        records: of the data.
        read_image, stamp, mark: of a record's image: uint8 RGB [h, w, 3]; see file_stamps; see
            content_digests, None where there is nothing that could change.
    """

    records: list[Record]
    read_image: Callable[[str], np.ndarray]
    stamp: Callable[[str], str | None]
    mark: Callable[[str], str] | None


class SourceError(ValueError):
    """An invalid source; the message quotes it and lists the valid ones."""


def open_records(
    data: str,
    trigger_word: str = "img",
    *,
    marked: bool = True,
    least: int = 2,
    keep_faceless: bool = False,
) -> tuple[list[Record], Callable[[str], np.ndarray]]:
    """The records of ``data``, and ``read_image``: maps a record's image to uint8 RGB [h, w, 3].

    ``read_image`` may be called from several threads; it raises an ImageError for an image that
    cannot be decoded. ``trigger_word`` follows the class word in every caption; with
    ``marked=False`` it may be missing. People with fewer than ``least`` images are left out and
    counted. A folder that has no manifest gets one; ``keep_faceless``: with images without a face.
    """
    data = str(data)
    if data.startswith(PEOPLE):
        return _draw(data, trigger_word)
    if not data:
        raise SourceError(f"no data given; {_forms()}")
    folder = Path(data)
    if not folder.is_dir():
        raise SourceError(f"{data}: no such folder; {_forms()}")
    if is_shards(folder):
        return open_shards(folder, trigger_word)
    if not (folder / FILE_NAME).is_file() and list_images(folder):
        make_manifest(folder, trigger_word, keep_faceless)
    return read_manifest(folder, trigger_word, marked=marked, least=least), load_image


def make_manifest(folder: Path, trigger_word: str, keep_faceless: bool = False) -> None:
    """Write the manifest of a folder that has images and none, and say what was found.

    Raises:
        SourceError: no image can be used, or the detector is missing; has the remedy.
    """
    if not os.access(folder, os.W_OK):
        raise SourceError(f"{folder}: has no {FILE_NAME} and cannot be written to; copy it")
    from data_pipeline.faces.shipped import NotShipped
    from data_pipeline.records.building import build_records

    print(f"{folder} has no {FILE_NAME}; making it as `python -m data_pipeline.manifest` does:")
    try:
        built = build_records(folder, trigger_word=trigger_word, keep_faceless=keep_faceless)
    except (NotShipped, ImportError) as error:
        raise SourceError(
            f"{folder}: no {FILE_NAME}, and no detector to make it: {error}"
        ) from error
    for line in built.lines():
        print(f"  {line}")
    if not built.records:
        raise SourceError(f"{folder}: no image can be used")
    faceless = sum(record.face_box is None for record in built.records)
    if faceless:
        print(
            f"  {faceless} images without a face are in it, as the method reads no references; for "
            "one that does, make it again with `python -m data_pipeline.manifest --replace`"
        )
    print(f"  wrote {write_manifest(folder, built.records)}; edit it, the next run reads it")


def file_stamps(data: str) -> Callable[[str], str | None]:
    """Maps record.image to a text that changes with the file, without reading it.

    None for drawn people, which are in memory anyway, and for a missing file.
    """
    data = str(data)
    if data.startswith(PEOPLE):
        return lambda name: None
    if is_shards(data):
        files = sorted(path for path in Path(data).iterdir() if path.is_file())
        all_of_them = ";".join(map(_stamp, files))
        return lambda name: f"{all_of_them};{name}"

    return file_stamp


def file_stamp(name: str) -> str | None:
    """A text that changes with a file; None if it is missing."""
    try:
        return _stamp(Path(name))
    except OSError:
        return None


def content_digests(data: str) -> Callable[[str], str] | None:
    """Maps record.image to a digest of its content, wherever it is; None for drawn people.

    In shards all images share one: the one in the index, or that of all files if it has none.
    """
    data = str(data)
    if data.startswith(PEOPLE):
        return None
    if not is_shards(data):
        return content_digest
    of_all = content_of_shards(data)
    if of_all is None:
        marks = "".join(content_digest(str(path)) for path in sorted(Path(data).glob("*record*")))
        of_all = f"{zlib.crc32(marks.encode()):08x}"
    return lambda name: of_all


def _stamp(path: Path) -> str:
    found = path.stat()
    return f"{path.absolute()} {found.st_size} {found.st_mtime_ns}"


def _forms() -> str:
    return (
        "give a folder of photographs, one written by `python -m data_pipeline.shards`, "
        f'or drawn people, such as "{PEOPLE}in_train?identities=200&pictures=16"'
    )


def _draw(data: str, trigger_word: str):
    from data_pipeline.drawing import people
    from data_pipeline.records.drawn import records_of

    split, numbers, weights = _people(data)
    count, size = numbers["identities"] * numbers["pictures"], numbers["size"]
    images = np.empty((count, size, size, 3), np.uint8)
    records = []
    for start in range(0, count, RENDER_BATCH):
        place = np.arange(start, min(start + RENDER_BATCH, count))
        who = numbers["first_identity"] + place // numbers["pictures"]
        picture = numbers["first_picture"] + place
        drawn = people.examples(split, who, picture, size, numbers["seed"], weights)
        images[place] = drawn.images
        names = [f"people/{split}/{i:06d}/{p:06d}" for i, p in zip(who, picture, strict=True)]
        records += records_of(drawn, names, trigger_word)
    images.setflags(write=False)  # handed out as they are
    return records, from_memory(images, [record.image for record in records], data)


def _people(data: str) -> tuple[str, dict[str, int], tuple[int, ...]]:
    """Split, numbers and framing weights of "people:SPLIT?name=value&..."."""
    from data_pipeline.drawing import people

    split, _, query = data[len(PEOPLE) :].partition("?")
    if split not in people.SPLITS:
        raise SourceError(f"{data}: split {split!r} is unknown; use {_one_of(people.SPLITS)}")
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query))
    except ValueError:
        raise SourceError(f'{data}: "name=value&name=value" is needed after the "?"') from None
    given = dict(pairs)
    unknown = sorted(given.keys() - {*NUMBERS, "framing"})
    if unknown:
        known = ", ".join([*NUMBERS, "framing"])
        raise SourceError(f"{data}: {', '.join(unknown)} is unknown here; known are {known}")
    if len(given) < len(pairs):
        raise SourceError(f"{data}: a name appears twice")
    framing = given.pop("framing", "mixed")
    if framing not in FRAMINGS:
        raise SourceError(f"{data}: framing={framing} is unknown; use {_one_of([*FRAMINGS])}")
    for name, text in given.items():
        if not text.isascii() or not text.isdigit() or int(text) < LEAST.get(name, 0):
            least = LEAST.get(name, 0)
            raise SourceError(
                f"{data}: {name}={text}; a whole number of at least {least} is needed"
            )
    numbers = NUMBERS | {name: int(text) for name, text in given.items()}
    return split, numbers, FRAMINGS[framing] or people.FRAMING_WEIGHTS


def _one_of(names) -> str:
    return ", ".join(names[:-1]) + f" or {names[-1]}"
