"""torch's own files (``.bin``, ``.pt``, ``.pth``, ``.ckpt``), read without executing their code.

They are pickles, and a pickle is a program. torch's restricted unpickler builds tensors and plain
containers and refuses everything else; torch 2.6 closed its bypasses (CVE-2025-32434), so older
versions are not used.
"""

import os
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from data_pipeline.files import atomic_write
from persongen_jax.weights.errors import (
    BadPickle,
    KeyMismatch,
    MissingDependency,
    MissingFile,
    UnsafePickle,
)
from persongen_jax.weights.files.source import TensorSource

SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pti")
NEEDED_TORCH = (2, 6)

# torch dtypes that ``Tensor.numpy`` lacks -> (dtype of the same width, the view in numpy).
VIEWED = {
    "bfloat16": ("int16", np.dtype(ml_dtypes.bfloat16)),
    "float8_e4m3fn": ("uint8", np.dtype(ml_dtypes.float8_e4m3fn)),
    "float8_e5m2": ("uint8", np.dtype(ml_dtypes.float8_e5m2)),
    "float8_e4m3fnuz": ("uint8", np.dtype(ml_dtypes.float8_e4m3fnuz)),
    "float8_e5m2fnuz": ("uint8", np.dtype(ml_dtypes.float8_e5m2fnuz)),
}


class PickleFile(TensorSource):
    """One torch file, open for reading.

    Nested dictionaries are flattened with dots: ``{"id_encoder": {"a.weight": t}}`` has the key
    ``id_encoder.a.weight``; ``subsource(file, "id_encoder.")`` restores the inner one. Arrays are
    created when they are read; files in torch's zip format (all since 1.6) stay mapped until then.

    Args:
        path: the file.

    Attributes:
        others: flattened key -> everything but tensors (step counts, notes), as Python values.

    Raises:
        MissingFile: there is none.
        MissingDependency: torch is absent or older than 2.6.
        UnsafePickle: it needs arbitrary unpickling; nothing was executed.
        BadPickle: it is damaged, or does not hold a dictionary with text keys.
    """

    def __init__(self, path: str | os.PathLike):
        self._path = Path(path)
        if not self._path.is_file():
            raise MissingFile(f"{self._path}: no such file. Check the path.")
        self._torch = _import_torch(self._path)
        self._tensors, self.others = {}, {}
        content = _load(self._torch, self._path)
        if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
            # A trainer's file may contain objects of any kind next to the weights.
            self.others = {str(k): v for k, v in content.items() if k != "state_dict"}
            content = {"state_dict": content["state_dict"]}
        self._flatten(content, "")
        if not self._tensors:
            raise BadPickle(f"{self._path}: holds no named tensors. It is not a weight file.")

    def keys(self) -> list[str]:
        return list(self._tensors)

    def info(self, key: str) -> tuple[np.dtype, tuple[int, ...]]:
        tensor = self._get(key)
        return self._numpy_dtype(key, tensor), tuple(tensor.shape)

    def read(self, key: str) -> np.ndarray:
        tensor = self._get(key).detach()
        dtype = self._numpy_dtype(key, tensor)
        name = _dtype_name(tensor)
        if name in VIEWED:
            # contiguous first: torch reinterprets widths only for plain layouts.
            tensor = tensor.contiguous().view(getattr(self._torch, VIEWED[name][0]))
        # A copy: the tensor's memory is a mapping of the file, or shared with another tensor.
        return np.array(tensor.numpy(), order="C").view(dtype)

    def describe(self) -> str:
        return str(self._path)

    def close(self) -> None:
        self._tensors = {}

    def _get(self, key):
        if key not in self._tensors:
            raise KeyMismatch(self._path, missing=[key])
        return self._tensors[key]

    def _flatten(self, value, prefix):
        if isinstance(value, dict):
            for key, item in value.items():
                if not isinstance(key, str):
                    raise BadPickle(
                        f"{self._path}: {prefix + repr(key)} is not text. Save a state dict, whose "
                        "keys are names."
                    )
                self._flatten(item, f"{prefix}{key}.")
            return
        key = prefix[:-1]
        if not key:
            raise BadPickle(
                f"{self._path}: holds one {type(value).__name__}, not a dictionary of tensors. "
                "Save a state dict."
            )
        if key in self._tensors or key in self.others:
            raise BadPickle(f"{self._path}: {key!r} is there twice, nested and with dots.")
        is_tensor = isinstance(value, self._torch.Tensor)
        (self._tensors if is_tensor else self.others)[key] = value

    def _numpy_dtype(self, key, tensor):
        name = _dtype_name(tensor)
        if name in VIEWED:
            return VIEWED[name][1]
        if tensor.layout is not self._torch.strided or tensor.is_quantized or name not in _PLAIN:
            raise BadPickle(
                f"{self._path}: {key!r} is a {name} tensor of layout {tensor.layout}, which has no "
                "numpy form. Save it dense and in a common dtype."
            )
        return np.dtype(_PLAIN[name])


_PLAIN = {
    name: name
    for name in (
        *("float16", "float32", "float64", "int8", "int16", "int32", "int64", "bool"),
        *("uint8", "uint16", "uint32", "uint64", "complex64", "complex128"),
    )
}


def _dtype_name(tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _import_torch(path):
    try:
        import torch
    except ImportError as error:
        raise MissingDependency(
            f"{path}: this kind of file is read through PyTorch, which is not installed. Install "
            "persongen_jax[convert], or convert the file to safetensors elsewhere."
        ) from error
    version = tuple(int(n) for n in torch.__version__.split("+")[0].split(".")[:2])
    if version < NEEDED_TORCH:
        raise MissingDependency(
            f"{path}: torch {torch.__version__} can be tricked into running code from such files; "
            "2.6 or newer is needed. Install persongen_jax[convert]."
        )
    return torch


def _load(torch, path):
    # Only the zip format can be mapped; older files are read whole.
    mmap = zipfile.is_zipfile(path)
    try:
        return torch.load(str(path), map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        if "Unsupported" in str(error) or "GLOBAL" in str(error):
            reason = str(error).split("WeightsUnpickler error:")[-1].strip().split("\n")[0]
            raise UnsafePickle(
                f"{path}: refused, since reading it would run code of its own ({reason[:200]}). "
                "Nothing was executed. Ask its author for a safetensors file, or make one where "
                "you trust it: load it with torch and save the state dict alone."
            ) from error
        raise _damaged(path, error) from error
    # torch does not document what it raises for damaged files.
    except Exception as error:
        raise _damaged(path, error) from error


def _damaged(path, error):
    reason = f"{type(error).__name__}: {str(error).strip().splitlines()[:1]}"
    return BadPickle(f"{path}: cannot be read ({reason[:300]}). It is damaged or no torch file.")


def write_pickle(path: str | os.PathLike, content: Mapping[str, Any]) -> None:
    """Write a torch file of nested dictionaries, atomically.

    Args:
        path: the file.
        content: arrays become tensors of their dtype, everything else stays as it is.

    Raises:
        MissingDependency: torch is absent.
    """
    try:
        import torch
    except ImportError as error:
        raise MissingDependency(
            f"{path}: {Path(path).suffix} files are written by PyTorch, which is not installed. "
            "Install persongen_jax[convert], or write a .safetensors file."
        ) from error

    def as_torch(value):
        if isinstance(value, Mapping):
            return {key: as_torch(item) for key, item in value.items()}
        if not hasattr(value, "__array__"):
            return value
        array = np.array(value)  # a copy: arrays of JAX may be read-only, which torch warns about
        if array.dtype == ml_dtypes.bfloat16:
            return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
        return torch.from_numpy(array)

    # By a file: torch writes the name of a path into it.
    with atomic_write(path) as partial, open(partial, "wb") as file:
        torch.save(as_torch(content), file)


__all__ = ["SUFFIXES", "PickleFile", "write_pickle"]
