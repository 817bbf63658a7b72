"""safetensors files, read strictly and without PyTorch, and written one tensor at a time.

The public library checks the header: that it is well formed, and that its offsets tile the data
without overlap or gap. What it lacks is here: tensors are read through ``read``, because the pages
of its memory map would stay resident beside the arrays that were made from them; all float8 dtypes
without PyTorch; no name twice; what to do about a file that was cut short; and files written with
one tensor in memory at a time.

The layout: eight bytes with the length of the header (little endian), the header (a JSON object),
and the tensors' bytes.
"""

import json
import math
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from data_pipeline.files import atomic_write
from persongen_jax.weights.errors import (
    BadEntry,
    BadHeader,
    KeyMismatch,
    MissingFile,
    TruncatedFile,
    WeightsError,
)
from persongen_jax.weights.files.source import TensorSource

MAX_HEADER = 100_000_000  # bytes; same as the public reader's limit
MAX_ELEMENTS = 2**63 - 1
MAX_DIMS = 64  # numpy's own limit

DTYPES = {
    "BOOL": np.dtype(np.bool_),
    "U8": np.dtype(np.uint8),
    "I8": np.dtype(np.int8),
    "U16": np.dtype("<u2"),
    "I16": np.dtype("<i2"),
    "U32": np.dtype("<u4"),
    "I32": np.dtype("<i4"),
    "U64": np.dtype("<u8"),
    "I64": np.dtype("<i8"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
    "C64": np.dtype("<c8"),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "F8_E4M3FNUZ": np.dtype(ml_dtypes.float8_e4m3fnuz),
    "F8_E5M2FNUZ": np.dtype(ml_dtypes.float8_e5m2fnuz),
    "F8_E8M0": np.dtype(ml_dtypes.float8_e8m0fnu),
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


class TensorFile(TensorSource):
    """One safetensors file, open for reading.

    The whole header is checked first: if the object exists, the file is sound.

    Args:
        path: the file.

    Raises:
        MissingFile: there is none.
        TruncatedFile: it ends before its header or its data does.
        BadHeader: the header violates the format in any other way.
    """

    def __init__(self, path: str | os.PathLike):
        self._path = Path(path)
        try:
            self._file = open(self._path, "rb", buffering=0)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise MissingFile(f"{self._path}: no such file. Check the path.") from error
        except IsADirectoryError as error:
            raise MissingFile(f"{self._path} is a folder; a file is expected here.") from error
        try:
            header, self._start, data_size = self._read_header()
            try:
                with safe_open(self._path, "np") as file:
                    self.metadata = file.metadata() or {}
            except SafetensorError as error:
                raise _fault(self._path, error, header, data_size) from error
            header.pop("__metadata__", None)
            self._entries = {key: _entry(self._path, key, v) for key, v in header.items()}
        except BaseException:
            self._file.close()
            raise

    def keys(self) -> list[str]:
        return list(self._entries)

    def info(self, key: str) -> tuple[np.dtype, tuple[int, ...]]:
        dtype, shape, _ = self._get(key)
        return dtype, shape

    def read(self, key: str) -> np.ndarray:
        dtype, shape, (begin, end) = self._get(key)
        # Bytes first, then a view: 0-d arrays and ml_dtypes offer no writable byte buffer.
        buffer = np.empty(end - begin, np.uint8)
        self._file.seek(self._start + begin)
        self._fill(buffer.data, key)
        return buffer.view(dtype).reshape(shape)

    def describe(self) -> str:
        return str(self._path)

    def close(self) -> None:
        self._file.close()

    def _get(self, key):
        if key not in self._entries:
            raise KeyMismatch(self._path, missing=[key])
        return self._entries[key]

    def _fill(self, view, what):
        """Read until ``view`` is full: one call returns at most 2 GiB, and may return less."""
        done = 0
        while done < len(view):
            count = self._file.readinto(view[done:])
            if not count:
                raise TruncatedFile(
                    f"{self._path}: the file ends within {what!r}, {len(view) - done} bytes short. "
                    "Fetch or copy it again."
                )
            done += count

    def _read_header(self):
        """(parsed JSON object, offset of the data, size of the data in bytes)."""
        size = os.fstat(self._file.fileno()).st_size
        if size < 8:
            raise TruncatedFile(
                f"{self._path}: {size} bytes cannot be a safetensors file. Fetch or copy it again."
            )
        prefix = bytearray(8)
        self._fill(memoryview(prefix), "the header's length")
        if bytes(prefix) == b"version ":
            raise BadHeader(
                f"{self._path} looks like a Git LFS pointer in place of the weights. "
                "Fetch the real file, for instance with `git lfs pull`."
            )
        length = int.from_bytes(prefix, "little")
        if length > MAX_HEADER:
            raise BadHeader(
                f"{self._path}: announces a header of {length} bytes, more than the {MAX_HEADER} "
                "that are allowed. It is not a safetensors file, or it is damaged."
            )
        if 8 + length > size:
            raise TruncatedFile(
                f"{self._path}: announces a header of {length} bytes, but the file has {size}. "
                "Fetch or copy it again."
            )
        raw = bytearray(length)
        self._fill(memoryview(raw), "the header")
        return _parse_header(self._path, bytes(raw)), 8 + length, size - 8 - length


def _parse_header(path, raw: bytes) -> dict:
    def unique(pairs):
        result = dict(pairs)
        if len(result) != len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise BadHeader(f"{path}: the header names {twice!r} twice. Write the file again.")
        return result

    try:
        header = json.loads(raw.decode("utf-8"), object_pairs_hook=unique)
    except BadHeader:
        raise
    except (ValueError, RecursionError) as error:
        raise BadHeader(
            f"{path}: the header is not valid JSON ({error}). It is not a safetensors file, or a "
            "damaged one."
        ) from error
    if not isinstance(header, dict):
        raise BadHeader(f"{path}: the header is not a JSON object. It is not a safetensors file.")
    return header


def _fault(path, error: SafetensorError, header: dict, data_size: int) -> WeightsError:
    """The library's error with the file's name and the remedy."""
    said = str(error).removeprefix("Error while deserializing header: ")
    if "not fully covered" in said:
        header.pop("__metadata__", None)
        end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
        if end > data_size:
            return TruncatedFile(
                f"{path}: holds {data_size} bytes of data where its header announces {end}. "
                "Fetch or copy it again."
            )
        said = f"{data_size - end} bytes follow the last tensor"
    return BadHeader(f"{path}: {said}. The file is damaged; write or fetch it again.")


def _entry(path, key: str, value):
    """(dtype, shape, (begin, end)) of one tensor of a header that the library takes."""
    # It takes a list for the object too, and an object for the dtype's name.
    name = value["dtype"] if isinstance(value, dict) else value
    if not isinstance(name, str) or name not in DTYPES:
        raise BadHeader(f"{path}: {key!r} has dtype {name}, not one of {', '.join(DTYPES)}")
    shape = value["shape"]
    # Zero sizes are left out here: beside them numpy still refuses impossible other sizes.
    if len(shape) > MAX_DIMS or math.prod(n for n in shape if n) > MAX_ELEMENTS // 16:
        raise BadHeader(f"{path}: {key!r} has shape {shape!r}, too large for any memory")
    return DTYPES[name], tuple(shape), tuple(value["data_offsets"])


Entry = tuple[str, tuple[int, ...], np.dtype, Callable[[], np.ndarray]]


def write_safetensors(
    path: str | os.PathLike, entries: Iterable[Entry], metadata: dict[str, str] | None = None
) -> None:
    """Write a file with one tensor in memory at a time, atomically.

    Args:
        path: the file; its folder must exist. An existing file is replaced at the end.
        entries: (name, shape, dtype, function without arguments that returns the array). Each
            function is called once, tensors of wide dtypes first, which keeps all data aligned.
        metadata: text -> text.

    Raises:
        BadEntry: a duplicate name, a dtype the format lacks, metadata that is not text, or an array
            that differs from its declaration. No file is left behind.
    """
    path = Path(path)
    entries = sorted(entries, key=lambda entry: -np.dtype(entry[2]).itemsize)
    header = _make_header(path, entries, metadata)
    with atomic_write(path) as partial, open(partial, "xb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for key, shape, dtype, make in entries:
            file.write(_checked_bytes(path, key, tuple(shape), np.dtype(dtype), make()))


def _make_header(path, entries, metadata) -> bytes:
    header, position = {}, 0
    if metadata is not None:
        if not all(isinstance(text, str) for item in metadata.items() for text in item):
            raise BadEntry(f"{path}: metadata must map text to text; convert it first.")
        header["__metadata__"] = dict(metadata)
    for key, shape, dtype, _ in entries:
        dtype = np.dtype(dtype)
        if key in header or key == "__metadata__":
            raise BadEntry(f"{path}: the name {key!r} is given twice, or reserved. Rename one.")
        if dtype not in NAMES:
            raise BadEntry(f"{path}: {key!r} has dtype {dtype}, which safetensors lacks. Cast it.")
        size = math.prod(shape) * dtype.itemsize
        header[key] = {
            "dtype": NAMES[dtype],
            "shape": [int(n) for n in shape],
            "data_offsets": [position, position + size],
        }
        position += size
    raw = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    return raw + b" " * (-len(raw) % 8)  # aligns the data to eight bytes


def _checked_bytes(path, key, shape, dtype, array) -> memoryview:
    """The array's bytes, if it matches its declaration."""
    array = np.asarray(array)
    if array.shape != shape or array.dtype != dtype:
        raise BadEntry(
            f"{path}: {key!r} was announced as {dtype} {shape} and came as {array.dtype} "
            f"{array.shape}. Announce what will be given."
        )
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


__all__ = ["DTYPES", "MAX_HEADER", "TensorFile", "write_safetensors"]
