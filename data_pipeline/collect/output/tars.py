"""WebDataset tars: of each picture its file, its caption and the rest as JSON.

The same records make the same bytes: no time, owner or mode of the machine is in them.
"""

import io
import json
import os
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from data_pipeline.files import atomic_write
from data_pipeline.records.schema import Record, to_entry


def write_tars(records: Sequence[Record], folder: Path, out: Path, size: int) -> list[Path]:
    """``out``/000000.tar and so on, ``size`` pictures each.

    Args:
        folder: of the records' manifest; names in the tars are relative to it.
    """
    out.mkdir(parents=True, exist_ok=True)
    paths = []
    for start in range(0, len(records), size):
        path = out / f"{start // size:06d}.tar"
        write_tar(path, members(records[start : start + size], folder))
        paths.append(path)
    return paths


def members(records: Iterable[Record], folder: Path) -> Iterator[tuple[str, bytes]]:
    """(name, contents): the picture, its .txt and its .json."""
    for record in records:
        name = Path(os.path.relpath(record.image, folder)).as_posix()
        stem, _, ending = name.rpartition(".")
        stem = stem.replace(".", "_").replace("/", "_")  # a key ends at its first dot
        entry: dict[str, Any] = {**to_entry(record), "image": name}
        entry |= entry.pop("extra", {})
        if record.images:
            entry["images"] = {k: Path(f).name for k, f in record.images.items()}
        yield f"{stem}.{ending}", Path(record.image).read_bytes()
        yield f"{stem}.txt", record.caption.encode()
        yield f"{stem}.json", json.dumps(entry, ensure_ascii=False).encode()
        for kind, file in (record.images or {}).items():
            yield f"{stem}.{kind}{Path(file).suffix}", Path(file).read_bytes()


def write_tar(path: Path, files: Iterable[tuple[str, bytes]]) -> None:
    """A tar of these files in one piece."""
    with (
        atomic_write(path) as partial,
        tarfile.open(partial, "w", format=tarfile.PAX_FORMAT) as tar,
    ):
        for name, contents in files:
            info = tarfile.TarInfo(name)
            info.size = len(contents)
            tar.addfile(info, io.BytesIO(contents))


def read_tar(path: Path) -> Iterator[tuple[str, bytes]]:
    """The files of a tar, in order."""
    with tarfile.open(path) as tar:
        for info in tar:
            file = tar.extractfile(info)
            if file is not None:
                yield info.name, file.read()
