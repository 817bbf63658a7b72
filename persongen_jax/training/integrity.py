"""Digests of a folder's files, which show whether they still are what was written.

    write_digests(folder)
    for fault in find_faults(folder): ...

``digests.json`` lists every file with its size and SHA-256. It is written last, and atomically.
"""

import hashlib
import json
import os
from pathlib import Path

from data_pipeline.files import write_text

NAME = "digests.json"


def write_digests(folder: Path) -> None:
    """Write ``folder``/digests.json for all files in the folder, at any depth."""
    folder = Path(folder)
    _write(folder, {name: _measure(folder / name) for name in _files(folder)})


def renew_digest(folder: Path, name: str) -> None:
    """Write digests.json anew for one file that was rewritten on purpose."""
    folder = Path(folder)
    entries = json.loads((folder / NAME).read_bytes())["files"]
    _write(folder, {**entries, name: _measure(folder / name)})


def _write(folder: Path, entries: dict):
    write_text(folder / NAME, json.dumps({"files": entries}, indent=1))
    sync_folder(folder)


def find_faults(folder: Path) -> list[str]:
    """What is wrong with the files of a folder, one line each; [] if nothing is.

    Files added later are not a fault.

    Raises:
        FileNotFoundError: there is no digests.json.
    """
    folder = Path(folder)
    try:
        entries = json.loads((folder / NAME).read_bytes())["files"]
        expected = {name: (e["bytes"], e["sha256"]) for name, e in entries.items()}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        return [f"{NAME}: unreadable ({type(error).__name__}: {error})"]
    faults = (_fault(folder / name, *entry) for name, entry in expected.items())
    return [f"{name}: {fault}" for name, fault in zip(expected, faults, strict=True) if fault]


def _fault(path: Path, size: int, digest: str) -> str:
    """What is wrong with a file; "" if nothing is."""
    try:
        if not path.is_file():
            return f"missing, expected {size} bytes"
        if path.stat().st_size != size:
            return f"{path.stat().st_size} bytes, expected {size}"
        found = _measure(path)["sha256"]
    except OSError as error:  # a bad disk block, or a lost mount
        return f"cannot be read ({error.strerror})"
    return "" if found == digest else f"SHA-256 {found[:16]}..., expected {digest[:16]}..."


def sync_folder(path: Path) -> None:
    """Return once the names in a folder are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _files(folder: Path) -> list[str]:
    paths = (path for path in folder.rglob("*") if path.is_file())
    return sorted(path.relative_to(folder).as_posix() for path in paths)


def _measure(path: Path) -> dict:
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {"bytes": file.tell(), "sha256": digest}
