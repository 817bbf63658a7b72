"""TensorSource: named tensors, read one at a time from any kind of file."""

import abc
import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from persongen_jax.weights.errors import KeyMismatch, WeightsError


class TensorSource(abc.ABC):
    """Named tensors with PyTorch's names and layouts.

    Shapes and dtypes are known without reading any data; ``read`` returns a new numpy array without
    keeping a reference, so the caller decides how much is in memory at once. Usable as a context
    manager.

    Attributes:
        metadata: text metadata of the file; {} if there is none.
        ignored: keys of the file that are left out on purpose, spelled as in the file.
    """

    metadata: dict[str, str] = {}
    ignored: tuple[str, ...] = ()

    @abc.abstractmethod
    def keys(self) -> list[str]:
        """All names, in the file's order."""

    @abc.abstractmethod
    def info(self, key: str) -> tuple[np.dtype, tuple[int, ...]]:
        """(dtype, shape) of one tensor. Raises ``KeyMismatch`` for an unknown name."""

    @abc.abstractmethod
    def read(self, key: str) -> np.ndarray:
        """One tensor, with the dtype and shape that ``info`` returns."""

    @abc.abstractmethod
    def describe(self) -> str:
        """The origin of the tensors, for messages."""

    @abc.abstractmethod
    def close(self) -> None:
        """Close open files. May be called more than once."""

    def __contains__(self, key: str) -> bool:
        return key in self.keys()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


@contextlib.contextmanager
def closed_on_error(source: TensorSource) -> Iterator[TensorSource]:
    """``source``; whatever goes wrong inside closes it."""
    try:
        yield source
    except BaseException:
        source.close()
        raise


class OpenedFile:
    """A weight file of a known kind, open for reading; a context manager.

    Attributes:
        tensors: all tensors of the file.
    """

    def __init__(self, source: TensorSource):
        self.tensors = source

    def describe(self) -> str:
        return self.tensors.describe()

    def close(self) -> None:
        self.tensors.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


class DictSource(TensorSource):
    """Arrays that are already in memory.

    Args:
        tensors: name -> numpy array.
        name: how messages call it.
    """

    def __init__(self, tensors: Mapping[str, np.ndarray], name: str = "tensors in memory"):
        self._tensors = dict(tensors)
        self._name = name

    def keys(self) -> list[str]:
        return list(self._tensors)

    def info(self, key: str) -> tuple[np.dtype, tuple[int, ...]]:
        array = self._get(key)
        return array.dtype, array.shape

    def read(self, key: str) -> np.ndarray:
        return np.array(self._get(key))

    def describe(self) -> str:
        return self._name

    def close(self) -> None:
        self._tensors = {}

    def _get(self, key):
        if key not in self._tensors:
            raise KeyMismatch(self._name, missing=[key])
        return self._tensors[key]


@dataclass(frozen=True)
class Transform:
    """A change of layout: functions of a shape, and of an array of that shape."""

    shape: Callable[[tuple[int, ...]], tuple[int, ...]]
    array: Callable[[np.ndarray], np.ndarray]


def third(part: int) -> Transform:
    """Rows of one of three equal parts, as in a fused q, k, v: [3 n, ...] -> [n, ...]."""

    def rows(array):
        n = array.shape[0] // 3
        # A copy, since a view would keep all three parts in memory.
        return array[part * n : (part + 1) * n].copy()

    return Transform(lambda shape: (shape[0] // 3, *shape[1:]), rows)


TRANSPOSE = Transform(lambda shape: shape[::-1], lambda array: np.ascontiguousarray(array.T))

# [out, in, 1, 1] or [out, in, 1] -> [out, in]: a 1x1 convolution is a linear layer.
POINTWISE = Transform(lambda shape: shape[:2], lambda array: array.reshape(array.shape[:2]))


# New name -> (name in the underlying source, a change of layout).
Table = Mapping[str, tuple[str, Transform | None]]


class RenamedSource(TensorSource):
    """Another source under other names, with some tensors in another layout.

    Args:
        base: the underlying source.
        table: new name -> (name in ``base``, ``Transform`` or None). One tensor of ``base`` may
            have several new names (a fused one that is split).
        ignored: names of ``base`` that are left out on purpose.
        part: which part of the file this is, for messages.
        owns_base: whether ``close`` closes ``base`` too; False if several sources share it.
    """

    def __init__(
        self,
        base: TensorSource,
        table: Table,
        *,
        ignored: Iterable[str] = (),
        part: str | None = None,
        owns_base: bool = True,
    ):
        self._base = base
        self._table = dict(table)
        self._part = part
        self._owns_base = owns_base
        self.metadata = base.metadata
        self.ignored = (*base.ignored, *ignored)

    def keys(self) -> list[str]:
        return list(self._table)

    def info(self, key: str) -> tuple[np.dtype, tuple[int, ...]]:
        origin, transform = self._entry(key)
        dtype, shape = self._base.info(origin)
        return dtype, transform.shape(shape) if transform else shape

    def read(self, key: str) -> np.ndarray:
        origin, transform = self._entry(key)
        array = self._base.read(origin)
        return transform.array(array) if transform else array

    def describe(self) -> str:
        name = self._base.describe()
        return f"{name} ({self._part})" if self._part else name

    def close(self) -> None:
        if self._owns_base:
            self._base.close()

    def _entry(self, key):
        if key not in self._table:
            raise KeyMismatch(self.describe(), missing=[key])
        return self._table[key]


class Renaming:
    """Builds a ``RenamedSource``'s table, and refuses two tensors under one name."""

    def __init__(self, base: TensorSource):
        self._base = base
        self._table: dict[str, tuple[str, Transform | None]] = {}
        self._ignored: list[str] = []

    def add(self, name: str, origin: str, transform: Transform | None = None) -> None:
        if name in self._table:
            raise WeightsError(
                f"{self._base.describe()}: {self._table[name][0]!r} and {origin!r} both mean "
                f"{name!r}. Remove one of them from the file."
            )
        self._table[name] = (origin, transform)

    def ignore(self, origin: str) -> None:
        self._ignored.append(origin)

    def source(self, **kwargs: Any) -> RenamedSource:
        """The finished source; arguments like ``RenamedSource``'s."""
        return RenamedSource(self._base, self._table, ignored=self._ignored, **kwargs)


def subsource(source: TensorSource, prefix: str) -> RenamedSource:
    """The tensors whose names begin with ``prefix``, without it. Closing it does not close
    ``source``, because others may read the rest."""
    names = [key for key in source.keys() if key.startswith(prefix)]
    if not names:
        raise KeyMismatch(source.describe(), missing=[prefix + "*"], unexpected=list(source.keys()))
    table = {name.removeprefix(prefix): (name, None) for name in names}
    return RenamedSource(source, table, part=prefix.rstrip("."), owns_base=False)


__all__ = [
    "POINTWISE",
    "TRANSPOSE",
    "DictSource",
    "RenamedSource",
    "Renaming",
    "TensorSource",
    "Transform",
    "subsource",
    "third",
]
