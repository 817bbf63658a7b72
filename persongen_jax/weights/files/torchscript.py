"""Weights in TorchScript's archives, read without PyTorch and without running their program.

OpenAI's CLIP files are such archives. A zip file holds the module tree as a pickle (``data.pkl``),
every storage as ``data/<number>``, and a program, which is left alone. The unpickler here makes
dictionaries of modules and descriptions of tensors, and refuses everything else.
"""

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from persongen_jax.weights.errors import BadPickle, KeyMismatch, MissingFile, UnsafePickle
from persongen_jax.weights.files.source import TensorSource

MAX_DIMS = 64  # numpy's own limit

STORAGES = {
    "DoubleStorage": np.dtype("<f8"),
    "FloatStorage": np.dtype("<f4"),
    "HalfStorage": np.dtype("<f2"),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"),
    "CharStorage": np.dtype(np.int8),
    "ByteStorage": np.dtype(np.uint8),
    "BoolStorage": np.dtype(np.bool_),
}


class _Storage(NamedTuple):
    dtype: np.dtype
    name: str


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Module:
    """A module of the program: its attributes by name."""

    attributes: dict[str, Any]

    def __setstate__(self, state):
        self.attributes = state if isinstance(state, dict) else {}


def is_torchscript(path: str | os.PathLike) -> bool:
    """Whether the file is a TorchScript archive."""
    try:
        if not zipfile.is_zipfile(path):
            return False
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False  # the reader reports the reason


class TorchScriptFile(TensorSource):
    """The tensors of a TorchScript archive, under the names of its state dict.

    Raises:
        MissingFile: there is none.
        UnsafePickle: its module tree needs code of its own; nothing was executed.
        BadPickle: it is damaged.
    """

    def __init__(self, path: str | os.PathLike):
        self._path = Path(path)
        if not self._path.is_file():
            raise MissingFile(f"{self._path}: no such file. Check the path.")
        try:
            self._archive = zipfile.ZipFile(self._path)
        except (OSError, zipfile.BadZipFile) as error:
            raise self._damaged(error) from error
        self._tensors: dict[str, _Tensor] = {}
        try:
            names = self._archive.namelist()
            self._root = next(n for n in names if n.endswith("/data.pkl")).removesuffix("data.pkl")
            with self._archive.open(self._entry("data.pkl")) as file:
                self._flatten(_Unpickler(file, self._path).load(), "", ())
            if not self._tensors:
                raise ValueError("it holds no tensors")
        except UnsafePickle:
            self._archive.close()
            raise
        # A damaged pickle may raise almost anything.
        except Exception as error:
            self._archive.close()
            raise self._damaged(error) from error

    def keys(self) -> list[str]:
        return list(self._tensors)

    def info(self, key: str) -> tuple[np.dtype, tuple[int, ...]]:
        tensor = self._get(key)
        return tensor.storage.dtype, tensor.shape

    def read(self, key: str) -> np.ndarray:
        (dtype, name), offset, shape, strides = self._get(key)
        try:
            values = np.frombuffer(self._archive.read(self._entry(f"data/{name}")), dtype)
        except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
            raise self._damaged(error) from error
        if 0 in shape:
            return np.zeros(shape, dtype)
        last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
        if last >= len(values):
            raise self._damaged(ValueError(f"{key!r} lies outside its storage"))
        steps = [step * dtype.itemsize for step in strides]
        return np.lib.stride_tricks.as_strided(values[offset:], shape, steps).copy()

    def describe(self) -> str:
        return str(self._path)

    def close(self) -> None:
        self._archive.close()

    def _get(self, key):
        if key not in self._tensors:
            raise KeyMismatch(self._path, missing=[key])
        return self._tensors[key]

    def _entry(self, name):
        entry = self._archive.getinfo(self._root + name)
        # torch does not compress; a compressed entry could be far larger than the file.
        if entry.compress_type != zipfile.ZIP_STORED:
            raise ValueError(f"{entry.filename} is compressed")
        return entry

    def _flatten(self, value, prefix, around):
        if isinstance(value, _Tensor):
            self._tensors[prefix[:-1]] = value
        elif isinstance(value, _Module):
            if id(value) in around:
                raise ValueError(f"{prefix!r} contains itself")
            for name, item in getattr(value, "attributes", {}).items():
                self._flatten(item, f"{prefix}{name}.", (*around, id(value)))

    def _damaged(self, error):
        return BadPickle(
            f"{self._path}: cannot be read as TorchScript ({type(error).__name__}: "
            f"{str(error)[:200]}). It is damaged; fetch it again."
        )


class _Unpickler(pickle.Unpickler):
    """Builds _Module and _Tensor; nothing that a pickle can name is called but what is here."""

    def __init__(self, file, path):
        super().__init__(file)
        self._path = path

    def find_class(self, module, name):
        if module.startswith("__torch__"):
            # A class of its own each time, so that a pickle can change none that others see.
            return type("_OwnModule", (_Module,), {})
        if module == "torch" and name in STORAGES:
            return name
        if (module, name) == ("collections", "OrderedDict"):
            return dict
        if module == "torch._utils" and name == "_rebuild_tensor_v2":
            return self._rebuild
        if module == "torch.jit._pickle" and name.startswith("build_"):
            return self._list
        raise UnsafePickle(
            f"{self._path}: refused, since reading it would run code of its own ({module}.{name}). "
            "Nothing was executed. Ask its author for a safetensors file."
        )

    def persistent_load(self, pid):
        kind, storage, name, *_ = pid
        if kind != "storage" or storage not in STORAGES or not str(name).isdigit():
            raise ValueError(f"{pid!r} is no storage")
        return _Storage(STORAGES[storage], str(name))

    def _rebuild(self, storage, offset, shape, strides, *_):
        numbers = [offset, *shape, *strides]
        sound = all(isinstance(n, int) and 0 <= n < 2**48 for n in numbers)
        if not isinstance(storage, _Storage) or not sound or len(shape) != len(strides):
            raise ValueError("a tensor of impossible sizes")
        if len(shape) > MAX_DIMS:
            raise ValueError(f"a tensor of {len(shape)} dimensions")
        return _Tensor(storage, offset, tuple(shape), tuple(strides))

    def _list(self, items):
        return list(items)


__all__ = ["TorchScriptFile", "is_torchscript"]
