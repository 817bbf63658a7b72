"""ONNX files as graphs with named tensors; the onnx package reads them, nothing is executed.

Of a graph only nodes, attributes, initialisers, inputs and outputs are looked at. What is added to
the package: a damaged file ends in one kind of error, and values are made before they are used.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from persongen_jax.weights.errors import BadOnnx, KeyMismatch, MissingDependency, MissingFile
from persongen_jax.weights.files.source import TensorSource

MAX_SIZE = 2**31  # bytes; protobuf's own limit
MAX_DIM = 2**31
READ_TYPES = (1, 6, 7, 10, 11)  # of TensorProto.DataType: float, int32, int64, float16, double
EXTERNAL = 1  # TensorProto.DataLocation

# By AttributeProto.AttributeType: how the value is read.
VALUES = {
    1: lambda attribute: attribute.f,
    2: lambda attribute: attribute.i,
    3: lambda attribute: attribute.s.decode("utf-8", "replace"),
    7: lambda attribute: list(attribute.ints),
}


class _Malformed(Exception):
    """The graph breaks the format."""


@dataclass
class Node:
    """One operation of the graph; attributes other than numbers and text are None."""

    op: str
    inputs: list[str]
    outputs: list[str]
    attributes: dict


class OnnxFile(TensorSource):
    """One ONNX file: its initialisers as tensors, its operations as ``nodes``.

    Args:
        path: the file. It is held in memory until ``close``.

    Attributes:
        nodes: in the file's order, which is checked to be a valid execution order.
        inputs, outputs: names of the graph's inputs that are not initialisers, and of its outputs.

    Raises:
        MissingFile: there is none.
        MissingDependency: the onnx package is not installed.
        BadOnnx: it is damaged, or no ONNX file.
    """

    def __init__(self, path: str | os.PathLike):
        self._path = Path(path)
        if not self._path.is_file():
            raise MissingFile(f"{self._path}: no such file. Check the path.")
        try:
            import onnx
            from google.protobuf.message import DecodeError
        except ImportError as error:
            raise MissingDependency(
                f"{self._path}: ONNX files are read by the package onnx, which is not installed. "
                "Install persongen_jax[onnx]."
            ) from error
        if self._path.stat().st_size >= MAX_SIZE:
            raise BadOnnx(f"{self._path}: larger than any ONNX file can be.")
        self._to_array = onnx.numpy_helper.to_array
        try:
            self._read_graph(onnx.ModelProto.FromString(self._path.read_bytes()).graph)
            self._check_order()
        except (_Malformed, DecodeError) as error:
            raise BadOnnx(
                f"{self._path}: cannot be read ({error}). It is damaged or no ONNX file; fetch or "
                "copy it again."
            ) from error

    def keys(self) -> list[str]:
        return list(self._tensors)

    def info(self, key: str) -> tuple[np.dtype, tuple[int, ...]]:
        array = self._get(key)
        return array.dtype, array.shape

    def read(self, key: str) -> np.ndarray:
        return np.array(self._get(key))

    def describe(self) -> str:
        return str(self._path)

    def close(self) -> None:
        self._tensors = {}

    def _get(self, key):
        if key not in self._tensors:
            raise KeyMismatch(self._path, missing=[key])
        tensor = self._tensors[key]
        # Only here, since a graph may hold tensors of odd kinds that nobody asks for.
        if tensor.data_type not in READ_TYPES or tensor.data_location == EXTERNAL:
            raise BadOnnx(
                f"{self._path}: {key!r} is of a kind that is not read here (data type "
                f"{tensor.data_type}, or stored outside of the file). Save it as float32 in one "
                "file."
            )
        try:
            return self._to_array(tensor)
        except ValueError as error:
            raise BadOnnx(
                f"{self._path}: {key!r} has other bytes of data than its shape {tensor.dims} needs "
                f"({error}). The file is damaged; fetch it again."
            ) from error

    def _read_graph(self, graph):
        self.nodes = [
            Node(
                *_texts([node.op_type]),
                _texts(node.input),
                _texts(node.output),
                {a.name: VALUES.get(a.type, lambda _: None)(a) for a in node.attribute},
            )
            for node in graph.node
        ]
        if not self.nodes:
            raise _Malformed("no graph in it")
        names = _texts(tensor.name for tensor in graph.initializer)
        self._tensors = dict(zip(names, graph.initializer, strict=True))
        if len(self._tensors) < len(graph.initializer):
            raise _Malformed("two tensors of one name")
        for name, tensor in self._tensors.items():
            if not all(0 < size < MAX_DIM for size in tensor.dims):
                raise _Malformed(f"{name!r} has shape {tensor.dims}")
        inputs = _texts(value.name for value in graph.input)
        self.inputs = [name for name in inputs if name not in self._tensors]
        self.outputs = _texts(value.name for value in graph.output)

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


def _texts(values) -> list[str]:
    """protobuf returns as bytes what is not UTF-8."""
    values = list(values)
    for value in values:
        if isinstance(value, bytes):
            raise _Malformed(f"the name {value!r} is not text")
    return values


__all__ = ["Node", "OnnxFile"]
