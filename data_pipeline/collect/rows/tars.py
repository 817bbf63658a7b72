"""WebDataset tars: files of one key are one sample, ``key.jpg``, ``key.json``, ``key.txt``."""

import tarfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from data_pipeline.collect.records import Row
from data_pipeline.collect.rows.columns import (
    RowError,
    checked_row,
    find_columns,
    make_row,
    raise_faults,
)
from data_pipeline.collect.rows.place import Place
from data_pipeline.pictures.listing import is_image_name
from data_pipeline.text_files import decode_text, parse_json

LARGEST_TEXT = 1 << 20  # bytes of a .json or .txt member


@dataclass
class Sample:
    """One key's members: where its picture lies, and what is said of it."""

    key: str
    place: Place | None = None
    member: str = ""
    caption: str = ""
    meta: dict[str, Any] = field(default_factory=dict)


def read_tars(
    tars: Iterable[str | Path], columns: Mapping[str, str] | None = None
) -> tuple[list[Row], dict[str, Place], list[str]]:
    """(rows, places, notes) of the samples that have a picture.

    The identity is the json's, or the folder's of the key (ann/0001.jpg). Without a url in the json
    the address is file: with the tar's and the member's name.

    Raises:
        RowError: a file is no tar, or samples cannot be used.
    """
    rows, places, notes, faults = [], {}, [], []
    paths = [Path(tar) for tar in tars]
    where = str(paths[0].parent if len(paths) > 1 else paths[0])
    for path in paths:
        bare = 0
        for sample in read_samples(path):
            if sample.place is None:
                bare += 1
                continue
            try:
                row = sample_row(sample, path, columns)
            except ValueError as error:
                faults.append(f"{path.name} {sample.key}: {error}")
                continue
            rows.append(row)
            places[row.key] = sample.place
        if bare:
            notes.append(f"{path.name}: {bare} samples without a picture are left out")
    raise_faults(where, faults)
    if not rows:
        raise RowError(f"{where}: no pictures in it")
    return rows, places, notes


def sample_row(sample: Sample, path: Path, columns: Mapping[str, str] | None) -> Row:
    """The row of a sample. ValueError with the end of a sentence."""
    found, _ = find_columns(sample.meta, f"{sample.key}.json", columns, required=())
    # Their sha256 is of the file before img2dataset wrote it anew.
    found.pop("sha256", None)
    entry = dict(sample.meta)
    folder = PurePosixPath(sample.key).parent.name
    if "identity" not in found:
        if not folder:
            raise ValueError(
                "no identity, neither in its json nor as a folder of its key; say which key of "
                "the json it is by identity=KEY"
            )
        found["identity"], entry[""] = "", folder
    if "url" not in found:
        found["url"], entry["url of ours"] = "url of ours", f"file:{path.name}/{sample.member}"
    row = make_row(entry, found)
    if not row.caption and sample.caption:
        row = checked_row({**row.to_json(), "caption": sample.caption})
    return row


def read_samples(path: Path) -> Iterator[Sample]:
    """The samples of one tar, in its order. RowError if it cannot be read."""
    try:
        with tarfile.open(path, "r:") as tar:
            sample = None
            for member in tar:
                if not member.isreg() or PurePosixPath(member.name).name.startswith("."):
                    continue
                key, ending = _split(member.name)
                if sample is not None and sample.key != key:
                    yield sample
                    sample = None
                sample = sample or Sample(key)
                if is_image_name(f"x.{ending}") and "." not in ending:
                    if sample.place is not None:
                        raise RowError(f"{path}: {key} has two pictures; leave one of them")
                    sample.place = Place(str(path), member.offset_data, member.size)
                    sample.member = member.name
                elif ending in ("json", "txt", "caption"):
                    _add_text(sample, ending, path, tar, member)
            if sample is not None:
                yield sample
    except (tarfile.TarError, EOFError) as error:
        packed = "; unpack it" if path.read_bytes()[:2] == b"\x1f\x8b" else ""
        raise RowError(f"{path}: not a tar that can be read ({error}){packed}") from error


def _split(name: str) -> tuple[str, str]:
    """(key, ending): WebDataset's key ends at the first dot of the file's name."""
    folder, slash, file = name.removeprefix("./").rpartition("/")
    stem, _, ending = file.partition(".")
    return folder + slash + stem, ending.lower()


def _add_text(sample: Sample, ending: str, path: Path, tar: tarfile.TarFile, member) -> None:
    where = f"{path}: {member.name}"
    if member.size > LARGEST_TEXT:
        raise RowError(f"{where}: {member.size} bytes of text are too many")
    file = tar.extractfile(member)
    text = decode_text(file.read() if file else b"", where)
    if ending == "json":
        value = parse_json(text, where)
        if not isinstance(value, dict):
            raise RowError(f"{where}: {type(value).__name__} instead of an object {{...}}")
        sample.meta = value
    else:
        sample.caption = " ".join(text.split())
