"""Atomic file writes."""

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike) -> Iterator[Path]:
    """Yields a temporary path next to ``path``; the file gets its own name when the block ends.

    A reader sees the old file or the new one, whole and on the disk, never half of one; also where
    several write at once. After an error the old file is there and nothing else.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        yield partial
        with open(partial, "r+b") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write a UTF-8 text file in one piece."""
    with atomic_write(path) as partial:
        partial.write_text(text, encoding="utf-8")
