"""Faults of weight files, one class per kind; all are ``WeightsError``."""

import os
from collections.abc import Iterable, Mapping

SHOWN = 20  # lines of each list in a message: enough to see the pattern, not a full screen


class WeightsError(ValueError):
    """A weight file or folder cannot be used. The message names it and the remedy."""


class MissingFile(WeightsError):
    """A required file does not exist."""


class TruncatedFile(WeightsError):
    """A file ends before the data that it declares."""


class BadHeader(WeightsError):
    """A safetensors header that breaks the format."""


class BadIndex(WeightsError):
    """A ``*.index.json`` that is malformed, unsafe, or disagrees with its shards."""


class BadConfig(WeightsError):
    """A config's JSON file that is malformed or describes something not supported here."""


class BadPickle(WeightsError):
    """A torch file that is damaged or holds something other than named tensors."""


class UnsafePickle(BadPickle):
    """A torch file that only arbitrary unpickling could read. None of it was executed."""


class BadOnnx(WeightsError):
    """An ONNX file that is damaged, or whose graph is not the expected network."""


class MissingDependency(WeightsError, ImportError):
    """An optional library that this file needs is absent or too old."""


class BadEntry(WeightsError):
    """A tensor to be written differs from its declaration."""


class UnsupportedAdapter(WeightsError):
    """An adapter file of a kind other than plain LoRA, or a damaged LoRA."""


class KeyMismatch(WeightsError):
    """The keys of a file do not match the expected keys.

    Args:
        where: the file.
        missing: expected keys that the file lacks; a mapping also gives their shapes.
        unexpected: keys of the file that are not expected; a mapping also gives their shapes.
        misshapen: key -> (shape in the file, expected shape) of keys on both sides.
        remedy: what to do about it, one sentence.
    """

    def __init__(
        self,
        where: str | os.PathLike,
        missing: Mapping[str, tuple] | Iterable[str] = (),
        unexpected: Mapping[str, tuple] | Iterable[str] = (),
        misshapen: Mapping[str, tuple[tuple, tuple]] | None = None,
        remedy: str = "Check that the file belongs to this model and its config.",
    ):
        self.missing = _with_shapes(missing)
        self.unexpected = _with_shapes(unexpected)
        self.misshapen = dict(misshapen or {})
        sections = [
            ("missing from the file", [k + _shape(s) for k, s in self.missing.items()]),
            ("unexpected in the file", [k + _shape(s) for k, s in self.unexpected.items()]),
            (
                "of another shape",
                [
                    f"{k}: file {_plain(a)}, model {_plain(b)}"
                    for k, (a, b) in self.misshapen.items()
                ],
            ),
        ]
        counts = ", ".join(f"{len(lines)} {title}" for title, lines in sections)
        parts = [f"{where}: the keys do not fit: {counts}. {remedy}"]
        parts += [_section(title, lines) for title, lines in sections if lines]
        super().__init__("\n".join(parts))


def shorten(names: Iterable[str], shown: int = SHOWN) -> str:
    """The first few names, comma separated, and the number of remaining ones."""
    names = [str(name) for name in names]
    rest = len(names) - shown
    return ", ".join(names[:shown]) + (f" and {rest} more" if rest > 0 else "")


def _with_shapes(keys) -> dict[str, tuple | None]:
    return dict(keys) if isinstance(keys, Mapping) else dict.fromkeys(keys)


def _plain(shape) -> str:
    # numpy integers would print as np.int64(3).
    return str(tuple(int(size) for size in shape))


def _shape(shape: tuple[int, ...] | None) -> str:
    return "" if shape is None else " " + _plain(shape)


def _section(title: str, lines: list[str]) -> str:
    rest = len(lines) - SHOWN
    tail = [f"  … and {rest} more"] if rest > 0 else []
    return "\n".join([f"{title} ({len(lines)}):", *(f"  {line}" for line in lines[:SHOWN]), *tail])


__all__ = [
    "BadConfig",
    "BadEntry",
    "BadHeader",
    "BadIndex",
    "BadOnnx",
    "BadPickle",
    "KeyMismatch",
    "MissingDependency",
    "MissingFile",
    "TruncatedFile",
    "UnsafePickle",
    "UnsupportedAdapter",
    "WeightsError",
    "shorten",
]
