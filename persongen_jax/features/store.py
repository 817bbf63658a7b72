"""Rows of arrays stored on disk under keys, for persongen_jax/features/.

A :class:`FeatureTable` is a folder of safetensors files with some thousands of rows each:

    keys  [n, 16] uint8    what a row was computed from, digest_of
    crc   [n] uint32       of the row's bytes
    rows  [n, size] uint8  a row's arrays concatenated, as the table's spec says

Files are written atomically and never changed, so that several processes may add to a table and
read it at once. Truncated files and flipped bytes are detected, logged and treated as missing: the
rows are computed again.
"""

import functools
import hashlib
import logging
import math
import os
import re
import secrets
import threading
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from persongen_jax.weights.errors import WeightsError
from persongen_jax.weights.files.safetensors_file import TensorFile, write_safetensors

log = logging.getLogger(__name__)

KEY_BYTES = 16
PART_BYTES = 1 << 28  # rows that wait in memory to be written
FORMAT = "feature table 1"


def digest_of(*parts: Any) -> bytes:
    """The 16-byte key of these texts, numbers, bytes and arrays; it differs for any others."""
    digest = hashlib.blake2b(digest_size=KEY_BYTES)
    for part in parts:
        if isinstance(part, np.ndarray):
            content: Any = np.ascontiguousarray(part)
            head = f"{content.dtype.str}{content.shape}"
            content = content.reshape(-1).view(np.uint8).data
        elif isinstance(part, bytes):
            head, content = "bytes", part
        else:
            head, content = type(part).__name__, repr(part).encode()
        digest.update(f"{head}:{len(content)}:".encode())
        digest.update(content)
    return digest.digest()


def stored_spec(folder: str | Path) -> dict[str, tuple[tuple[int, ...], np.dtype]] | None:
    """The spec of the rows that a folder holds; None if it holds none that can be read."""
    for path in sorted(Path(folder).glob("*.safetensors")):
        try:
            parts = _Part(path).spec.split("; ")
        except (WeightsError, KeyError, ValueError):
            continue  # the table says so when it is opened
        found = {}
        for part in parts:  # such as "features [512] float32", see FeatureTable._spec_text
            name, shape, dtype = re.split(r" \[|\] ", part)
            found[name] = (tuple(map(int, re.findall(r"\d+", shape))), np.dtype(dtype))
        return found
    return None


class FeatureTable:
    """Rows by key; safe to use from several threads.

    Args:
        folder: created if necessary.
        spec: name to (shape, dtype) of a row's arrays.
        part_bytes: new rows wait in memory until they have this many bytes, and are then written.

    Raises:
        ValueError: the folder holds rows of another spec.
    """

    def __init__(self, folder: str | Path, spec: dict, part_bytes: int = PART_BYTES):
        self.folder = Path(folder)
        self.spec = {name: (tuple(shape), np.dtype(dtype)) for name, (shape, dtype) in spec.items()}
        sizes = (math.prod(shape) * dtype.itemsize for shape, dtype in self.spec.values())
        self.row_bytes = sum(sizes)
        self._part_bytes = part_bytes
        self._place: dict[bytes, tuple[_Part, int]] = {}
        self._waiting: dict[bytes, bytes] = {}
        self._seen: set[str] = set()
        self._lock = threading.RLock()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.refresh()

    def __contains__(self, key: bytes) -> bool:
        return key in self._waiting or key in self._place

    def __len__(self) -> int:
        return len(self._waiting.keys() | self._place.keys())

    def refresh(self) -> None:
        """Also read what other processes have written meanwhile."""
        with self._lock:
            # By name, which begins with the time: of two rows with one key the later one counts.
            for path in sorted(self.folder.glob("*.safetensors")):
                if path.name not in self._seen:
                    self._seen.add(path.name)
                    self._open(path)

    def get(self, key: bytes) -> dict[str, np.ndarray] | None:
        """The arrays of a row; None if there is none, or it is damaged."""
        row = self._waiting.get(key)
        if row is None:
            if key not in self._place:
                return None
            part, i = self._place[key]
            row = part.row(i)
            if row is None:
                log.warning(
                    "%s: row %d is damaged; it will be computed again",
                    part.path,
                    i,
                )
                with self._lock:
                    self._place.pop(key, None)
                return None
        return self._unpack(row)

    def put(self, key: bytes, arrays: dict[str, np.ndarray]) -> None:
        """Store a row; it is on disk after the next flush, or when enough rows wait."""
        row = self._pack(arrays)
        with self._lock:
            self._waiting[key] = row
            if len(self._waiting) * self.row_bytes >= self._part_bytes:
                self.flush()

    def flush(self) -> None:
        """Write the waiting rows as one new file."""
        with self._lock:
            if not self._waiting:
                return
            keys, rows = list(self._waiting), list(self._waiting.values())
            name = f"{time.time_ns():020d}-{secrets.token_hex(4)}.safetensors"
            arrays: dict[str, np.ndarray] = {
                "keys": np.frombuffer(b"".join(keys), np.uint8).reshape(-1, KEY_BYTES),
                "crc": np.array([zlib.crc32(row) for row in rows], np.uint32),
                "rows": np.frombuffer(b"".join(rows), np.uint8).reshape(len(rows), self.row_bytes),
            }
            index = zlib.crc32(arrays["keys"].tobytes() + arrays["crc"].tobytes())
            metadata = {"format": FORMAT, "spec": self._spec_text(), "index": str(index)}
            path = self.folder / name
            tensors = [
                (n, array.shape, array.dtype, functools.partial(arrays.__getitem__, n))
                for n, array in arrays.items()
            ]
            write_safetensors(path, tensors, metadata)
            self._seen.add(name)
            self._open(path)
            self._waiting.clear()

    def discard(self) -> None:
        """Discard the waiting rows."""
        with self._lock:
            self._waiting.clear()

    def _spec_text(self) -> str:
        return "; ".join(f"{n} {list(s)} {d.name}" for n, (s, d) in self.spec.items())

    def _open(self, path: Path) -> None:
        try:
            part = _Part(path)
        except (WeightsError, KeyError, ValueError) as error:
            log.warning("%s: damaged, and ignored; remove it (%s)", path, error)
            return
        if part.spec != self._spec_text():
            raise ValueError(
                f"{path}: holds rows of {part.spec}, not of {self._spec_text()}; it belongs "
                "elsewhere: remove it"
            )
        self._place.update({key: (part, i) for i, key in enumerate(part.keys)})

    def _pack(self, arrays: dict) -> bytes:
        if arrays.keys() != self.spec.keys():
            raise ValueError(f"{self.folder}: a row of {list(arrays)}; {list(self.spec)} is needed")
        for name, (shape, dtype) in self.spec.items():
            found = arrays[name].shape, arrays[name].dtype
            if found != (shape, dtype):
                raise ValueError(f"{self.folder}: {name} is {found}; {(shape, dtype)} is needed")
        return b"".join(np.ascontiguousarray(arrays[name]).tobytes() for name in self.spec)

    def _unpack(self, row: bytes) -> dict[str, np.ndarray]:
        arrays, start = {}, 0
        for name, (shape, dtype) in self.spec.items():
            count = math.prod(shape)
            arrays[name] = np.frombuffer(row, dtype, count, start).reshape(shape)
            start += count * dtype.itemsize
        return arrays


class _Part:
    """One file of a table: its keys in memory, its rows on disk."""

    def __init__(self, path: Path):
        self.path = path
        with TensorFile(path) as file:  # checks that the file is as long as it should be
            keys, crc = file.read("keys"), file.read("crc")
            self.spec = file.metadata["spec"]
            if file.metadata["format"] != FORMAT:
                raise ValueError(f"its format is {file.metadata['format']!r}, not {FORMAT!r}")
            if str(zlib.crc32(keys.tobytes() + crc.tobytes())) != file.metadata["index"]:
                raise ValueError("its index does not have its checksum")
            (rows, self._size) = file.info("rows")[1]
        if not len(keys) == len(crc) == rows:
            raise ValueError("its index and its rows differ in number")
        self._crc = crc
        self.keys = [key.tobytes() for key in keys]
        # Wide tensors come first, and among the narrow ones the rows were written last.
        self._start = path.stat().st_size - rows * self._size

    def row(self, i: int) -> bytes | None:
        """The row's bytes; None if they are not those that were written."""
        try:
            # Not kept open: there may be more files than a process may have open.
            with open(self.path, "rb", buffering=0) as file:
                row = os.pread(file.fileno(), self._size, self._start + i * self._size)
        except FileNotFoundError:  # somebody removed it meanwhile
            return None
        return row if zlib.crc32(row) == self._crc[i] else None
