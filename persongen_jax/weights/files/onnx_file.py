"""ONNX files as graphs with named tensors, read without the onnx package.

An ONNX file is one protobuf message: a sequence of fields (number, value), nested. Of onnx.proto's
messages only nodes, attributes, initialisers and the graph's inputs and outputs are read; nothing
is executed.
"""

import math
import os
import struct
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from persongen_jax.weights.errors import BadOnnx, KeyMismatch, MissingFile
from persongen_jax.weights.files.source import TensorSource

MAX_SIZE = 2**31  # bytes; protobuf's own limit
MAX_DIM = 2**31
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # protobuf's wire types
FLOAT, INT, STRING, INTS = 1, 2, 3, 7  # onnx.proto's AttributeProto.AttributeType
EXTERNAL = 1  # TensorProto.DataLocation

# TensorProto.DataType.
DTYPES: dict[int, np.dtype] = {
    1: np.dtype("<f4"),
    6: np.dtype("<i4"),
    7: np.dtype("<i8"),
    10: np.dtype("<f2"),
    11: np.dtype("<f8"),
}


class _Malformed(Exception):
    """The bytes break the format."""


@dataclass
class Node:
    """One operation of the graph; attributes other than numbers and text are None."""

    op: str = ""
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    attributes: dict = field(default_factory=dict)


@dataclass
class _Tensor:
    name: str = ""
    dtype: int = 0
    shape: tuple[int, ...] = ()
    data: memoryview | None = None


class OnnxFile(TensorSource):
    """One ONNX file: its initialisers as tensors, its operations as ``nodes``.

    Args:
        path: the file. It is held in memory until ``close``.

    Attributes:
        nodes: in the file's order, which is checked to be a valid execution order.
        inputs, outputs: names of the graph's inputs that are not initialisers, and of its outputs.

    Raises:
        MissingFile: there is none.
        BadOnnx: it is damaged, or not an ONNX file.
    """

    def __init__(self, path: str | os.PathLike):
        self._path = Path(path)
        if not self._path.is_file():
            raise MissingFile(f"{self._path}: no such file. Check the path.")
        if self._path.stat().st_size >= MAX_SIZE:
            raise BadOnnx(f"{self._path}: larger than any ONNX file can be.")
        self.nodes, self.inputs, self.outputs, self._tensors = [], [], [], {}
        try:
            self._read_model(memoryview(self._path.read_bytes()))
            self._check_order()
        except (_Malformed, UnicodeDecodeError) as error:
            raise BadOnnx(
                f"{self._path}: cannot be read ({error}). It is damaged or no ONNX file; fetch or "
                "copy it again."
            ) from error

    def keys(self) -> list[str]:
        return list(self._tensors)

    def info(self, key: str) -> tuple[np.dtype, tuple[int, ...]]:
        tensor = self._get(key)
        return DTYPES[tensor.dtype], tensor.shape

    def read(self, key: str) -> np.ndarray:
        tensor = self._get(key)
        return np.frombuffer(tensor.data, DTYPES[tensor.dtype]).reshape(tensor.shape).copy()

    def describe(self) -> str:
        return str(self._path)

    def close(self) -> None:
        self._tensors = {}

    def _get(self, key):
        if key not in self._tensors:
            raise KeyMismatch(self._path, missing=[key])
        tensor = self._tensors[key]
        # Checked only on access, since a graph may hold unused tensors of unsupported kinds.
        if tensor.dtype not in DTYPES or tensor.data is None:
            raise BadOnnx(
                f"{self._path}: {key!r} is of a kind that is not read here (data type "
                f"{tensor.dtype}, or stored outside of the file). Save it as float32 in one file."
            )
        size = math.prod(tensor.shape) * DTYPES[tensor.dtype].itemsize
        if size != len(tensor.data):
            raise BadOnnx(
                f"{self._path}: {key!r} has {len(tensor.data)} bytes of data where its shape "
                f"{tensor.shape} needs {size}. The file is damaged; fetch it again."
            )
        return tensor

    def _read_model(self, data):
        graphs = [value for number, value in _fields(data) if number == 7]
        if len(graphs) != 1:
            raise _Malformed(f"{len(graphs)} graphs in place of one")
        for number, value in _fields(_bytes(graphs[0])):
            if number == 1:
                self.nodes.append(_node(_bytes(value)))
            elif number == 5:
                tensor = _tensor(_bytes(value))
                if tensor.name in self._tensors:
                    raise _Malformed(f"two tensors called {tensor.name!r}")
                self._tensors[tensor.name] = tensor
            elif number in (11, 12):
                name = next((_text(v) for n, v in _fields(_bytes(value)) if n == 1), "")
                (self.inputs if number == 11 else self.outputs).append(name)
        self.inputs = [name for name in self.inputs if name not in self._tensors]

    def _check_order(self):
        """Every value is produced once and before its use, so that traversing them terminates."""
        known = {"", *self.inputs, *self._tensors}  # "" means an omitted input
        for node in self.nodes:
            for name in node.inputs:
                if name not in known:
                    raise _Malformed(f"{node.op} uses {name!r}, which nothing before it makes")
            for name in filter(None, node.outputs):
                if name in known:
                    raise _Malformed(f"{name!r} is made twice")
                known.add(name)


def _node(data) -> Node:
    node = Node()
    for number, value in _fields(data):
        if number == 1:
            node.inputs.append(_text(value))
        elif number == 2:
            node.outputs.append(_text(value))
        elif number == 4:
            node.op = _text(value)
        elif number == 5:
            name, content = _attribute(_bytes(value))
            node.attributes[name] = content
    return node


def _attribute(data):
    """(name, float, int, text, list of ints, or None for other kinds)."""
    name, kind, values = "", 0, {FLOAT: 0.0, INT: 0, STRING: "", INTS: []}
    for number, value in _fields(data):
        if number == 1:
            name = _text(value)
        elif number == 2:
            (values[FLOAT],) = struct.unpack("<f", _bytes(value, 4))
        elif number == 3:
            values[INT] = _signed(_integer(value))
        elif number == 4:
            values[STRING] = bytes(_bytes(value)).decode("utf-8", "replace")
        elif number == 8:
            values[INTS] += _integers(value)
        elif number == 20:
            kind = _integer(value)
    return name, values.get(kind)


def _tensor(data) -> _Tensor:
    tensor, location = _Tensor(), 0
    for number, value in _fields(data):
        if number == 1:
            tensor.shape += tuple(_integers(value))
        elif number == 2:
            tensor.dtype = _integer(value)
        elif number == 8:
            tensor.name = _text(value)
        elif number == 9 or (number == 4 and tensor.dtype == 1):  # raw, or a run of floats
            tensor.data = _bytes(value)
        elif number == 14:
            location = _integer(value)
    if location == EXTERNAL:
        tensor.data = None
    if not all(0 < size < MAX_DIM for size in tensor.shape):
        raise _Malformed(f"{tensor.name!r} has shape {tensor.shape}")
    return tensor


def _fields(data: memoryview):
    """(number, value) of every field of one message; value is an int or a slice of ``data``."""
    position, end = 0, len(data)
    while position < end:
        tag, position = _varint(data, position)
        kind = tag & 7
        if kind == VARINT:
            value, position = _varint(data, position)
        else:
            if kind == BYTES:
                size, position = _varint(data, position)
            elif kind in (FIXED32, FIXED64):
                size = 4 if kind == FIXED32 else 8
            else:
                raise _Malformed(f"a field of unknown wire type {kind}")
            if size > end - position:
                raise _Malformed("a field runs past the end")
            value = data[position : position + size]
            position += size
        yield tag >> 3, value


def _varint(data, position):
    """(unsigned integer, position after it): seven bits per byte, the lowest first."""
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(data):
            raise _Malformed("it ends within a number")
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise _Malformed("a number of more than ten bytes")


def _bytes(value, size=None) -> memoryview:
    if isinstance(value, int) or (size is not None and len(value) != size):
        raise _Malformed("a field of the wrong kind")
    return value


def _integer(value) -> int:
    if not isinstance(value, int):
        raise _Malformed("a field of the wrong kind")
    return value


def _integers(value) -> list[int]:
    """Repeated integers are stored one by one or packed into one byte string."""
    if isinstance(value, int):
        return [_signed(value)]
    numbers, position = [], 0
    while position < len(value):
        number, position = _varint(value, position)
        numbers.append(_signed(number))
    return numbers


def _signed(value: int) -> int:
    value &= 2**64 - 1
    return value - 2**64 if value >= 2**63 else value


def _text(value) -> str:
    return bytes(_bytes(value)).decode("utf-8")


__all__ = ["DTYPES", "Node", "OnnxFile"]
