"""TensorFlow.js graph models: read without TensorFlow, run by numpy or traced by JAX.

A model is a ``.json`` with nodes (operation, inputs, attributes) and a list of weights, and
``.bin`` files with their values one after another. The operations here are those of the published
MoveNet; another is refused by name. Arrays are NHWC.
"""

import base64
import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

TYPES = {"DT_FLOAT": np.float32, "DT_INT32": np.int32, "DT_BOOL": np.bool_, "DT_INT64": np.int64}
STORED = {"float32": np.float32, "int32": np.int32, "bool": np.bool_}


class ModelError(ValueError):
    """A file that cannot be read or run; the message names it and the remedy."""


@dataclass(frozen=True)
class Node:
    """One operation; ``inputs`` are (name, which of its outputs)."""

    name: str
    op: str
    inputs: tuple[tuple[str, int], ...]
    attributes: Mapping[str, Any]


@dataclass(frozen=True)
class GraphModel:
    """A TensorFlow.js graph model.

    Attributes:
        nodes: in an order in which they can run.
        weights: by the names of the Const nodes.
        inputs: name -> shape, -1 for any size; outputs: names.
        origin: where the file says that it comes from; "" if it does not.
    """

    nodes: tuple[Node, ...]
    weights: Mapping[str, np.ndarray]
    inputs: Mapping[str, tuple[int, ...]]
    outputs: tuple[str, ...]
    origin: str

    def __call__(self, *inputs: Any, xp: Any = np) -> list[Any]:
        """The outputs for inputs in the order of ``inputs``; ``xp`` is numpy or jax.numpy."""
        known: dict[tuple[str, int], Any] = {(k, 0): v for k, v in self.weights.items()}
        known |= {(name, 0): value for name, value in zip(self.inputs, inputs, strict=True)}
        for node in self.nodes:
            if (node.name, 0) in known:
                continue
            values = [known[place] for place in node.inputs]
            # What depends on weights alone, such as shapes, stays in numpy: JAX must know it.
            plain = all(isinstance(value, (np.ndarray, np.generic)) for value in values)
            result = OPERATIONS[node.op](np if plain else xp, node.attributes, *values)
            results = result if isinstance(result, list) else [result]
            known |= {(node.name, i): value for i, value in enumerate(results)}
        return [known[name, 0] for name in self.outputs]


# ---- Reading -----------------------------------------------------------------------------------


def read_graph_model(path: str | os.PathLike) -> GraphModel:
    """Read a ``model.json`` and the ``.bin`` files next to it.

    Raises:
        FileNotFoundError: one of them is missing. ModelError: another kind of file, operations
            that are not read here, or weights of another size.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; give a TensorFlow.js model's .json")
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        topology, manifest = held["modelTopology"]["node"], held["weightsManifest"]
        nodes = [_node(entry) for entry in topology]
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"{path}: not a TensorFlow.js graph model, whose .json is "
            f"needed ({type(error).__name__})"
        ) from error
    unknown = sorted({n.op for n in nodes} - OPERATIONS.keys() - {"Const", "Placeholder"})
    if unknown:
        raise ModelError(f"{path}: operations that are not read here: {', '.join(unknown)}")
    weights = {name: array for group in manifest for name, array in _weights(path, group)}
    inputs = {n.name: n.attributes.get("shape", ()) for n in nodes if n.op == "Placeholder"}
    used = {name for node in nodes for name, _ in node.inputs}
    signature = (held.get("signature") or {}).get("outputs") or {}
    outputs = [value["name"].partition(":")[0] for value in signature.values()]
    outputs = outputs or [node.name for node in nodes if node.name not in used]
    return GraphModel(
        _in_order(nodes, weights, path),
        weights,
        inputs,
        tuple(outputs),
        held.get("generatedBy", ""),
    )


def _node(entry: dict) -> Node:
    inputs = []
    for text in entry.get("input", []):
        if text.startswith("^"):
            continue  # an order of execution, which values do not need
        name, _, number = text.partition(":")
        inputs.append((name, int(number or 0)))
    attributes = {key: _attribute(value) for key, value in entry.get("attr", {}).items()}
    return Node(entry["name"], entry["op"], tuple(inputs), attributes)


def _attribute(value: dict) -> Any:
    """Integers are strings in the file, and texts are base64."""
    if len(value) != 1:
        return None
    kind, held = next(iter(value.items()))
    if kind == "i":
        return int(held)
    if kind == "s":
        return base64.b64decode(held).decode("utf-8", "replace")
    if kind == "type":
        return TYPES.get(held, held)
    if kind == "shape":
        return tuple(int(dim["size"]) for dim in held.get("dim", []))
    if kind == "list":
        return [_attribute({key: item}) for key, items in held.items() for item in items]
    return held


def _weights(path: Path, group: dict):
    """(name, array) of a group of the manifest, float16 and uint8 made float32."""
    files = [path.parent / name for name in group["paths"]]
    absent = [file for file in files if not file.is_file()]
    if absent:
        raise FileNotFoundError(f"{absent[0]}: missing; {path.name} stores its weights there")
    data, start = b"".join(file.read_bytes() for file in files), 0
    for weight in group["weights"]:
        small = weight.get("quantization") or {}
        stored = np.dtype(small.get("dtype", STORED.get(weight["dtype"], weight["dtype"])))
        count = math.prod(weight["shape"])
        end = start + count * stored.itemsize
        if end > len(data):
            raise ModelError(f"{path}: its .bin files are too short; fetch them again")
        array = np.frombuffer(data, stored, count, start).reshape(weight["shape"])
        if small:
            array = array.astype(np.float32)
            if "scale" in small:
                array = array * np.float32(small["scale"]) + np.float32(small.get("min", 0))
        yield weight["name"], array
        start = end
    if start != len(data):
        raise ModelError(f"{path}: its .bin files hold {len(data)} bytes, not {start}")


def _in_order(nodes: list[Node], weights: Mapping, path: Path) -> tuple[Node, ...]:
    """The nodes so that each comes after its inputs."""
    known = {*weights, *(node.name for node in nodes if node.op == "Placeholder")}
    waiting = [node for node in nodes if node.name not in known]
    ordered: list[Node] = []
    while waiting:
        ready = [node for node in waiting if all(name in known for name, _ in node.inputs)]
        if not ready:
            raise ModelError(f"{path}: {waiting[0].name} has no input that anything makes")
        ordered += ready
        known |= {node.name for node in ready}
        waiting = [node for node in waiting if node.name not in known]
    return tuple(ordered)


# ---- Operations: (numpy or jax.numpy, attributes, inputs) ----------------------------------------


def _padding(size: int, kernel: int, step: int, kind: str) -> tuple[int, int]:
    """TensorFlow's SAME has more at the end."""
    if kind == "VALID":
        return 0, 0
    whole = max((-(-size // step) - 1) * step + kernel - size, 0)
    return whole // 2, whole - whole // 2


def _taps(xp, attributes, x, kernel):
    """Each tap of a convolution: the part of ``x`` that it meets, and its place."""
    (_, down, across, _), kind = attributes["strides"], attributes["padding"]
    if set(attributes.get("dilations") or [1]) != {1}:
        raise ModelError("dilated convolutions are not read here")
    _, height, width, _ = x.shape
    top, bottom = _padding(height, kernel.shape[0], down, kind)
    left, right = _padding(width, kernel.shape[1], across, kind)
    x = xp.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)))
    rows = (height + top + bottom - kernel.shape[0]) // down + 1
    columns = (width + left + right - kernel.shape[1]) // across + 1
    for i in range(kernel.shape[0]):
        for j in range(kernel.shape[1]):
            part = x[:, i : i + (rows - 1) * down + 1 : down]
            yield i, j, part[:, :, j : j + (columns - 1) * across + 1 : across]


def _conv(xp, attributes, x, kernel):
    return sum(part @ kernel[i, j] for i, j, part in _taps(xp, attributes, x, kernel))


def _depthwise(xp, attributes, x, kernel):
    if kernel.shape[3] != 1:
        raise ModelError("depthwise convolutions of several kernels per channel are not read here")
    return sum(part * kernel[i, j, :, 0] for i, j, part in _taps(xp, attributes, x, kernel))


def _fused(convolution: Callable) -> Callable:
    """With a bias and an activation."""

    def run(xp, attributes, x, kernel, *rest):
        y = convolution(xp, attributes, x, kernel)
        for name, value in zip(attributes.get("fused_ops", []), [*rest, None, None], strict=False):
            if name == "BiasAdd":
                y = y + value
            elif name in ACTIVATIONS:
                y = ACTIVATIONS[name](xp, y)
            else:
                raise ModelError(f"{name} after a convolution is not read here")
        return y

    return run


ACTIVATIONS = {"Relu": lambda xp, x: xp.maximum(x, 0), "Relu6": lambda xp, x: xp.clip(x, 0, 6)}


def _resize(xp, attributes, x, size):
    """Bilinear, as matrices over rows and columns."""
    for axis, wanted in zip((1, 2), np.asarray(size).tolist(), strict=True):
        held = x.shape[axis]
        place = np.arange(wanted, dtype=np.float64)
        if attributes.get("align_corners"):
            place = place * (held - 1) / max(wanted - 1, 1)
        elif attributes.get("half_pixel_centers"):
            place = (place + 0.5) * held / wanted - 0.5
        else:
            place = place * held / wanted
        place = np.clip(place, 0, held - 1)
        low = np.floor(place).astype(int)
        high = np.minimum(low + 1, held - 1)
        part = (place - low).astype(np.float32).reshape([-1 if a == axis else 1 for a in range(4)])
        x = xp.take(x, low, axis) * (1 - part) + xp.take(x, high, axis) * part
    return x


def _gather_nd(xp, _, x, places):
    return x[tuple(places[..., i] for i in range(places.shape[-1]))]


def _sigmoid(xp, _, x):
    return 0.5 + 0.5 * xp.tanh(0.5 * x)  # does not overflow


def _ints(array) -> list[int]:
    return np.asarray(array).reshape(-1).tolist()


OPERATIONS: dict[str, Callable] = {
    "AddV2": lambda xp, _, a, b: a + b,
    "ArgMax": lambda xp, a, x, axis: xp.argmax(x, int(axis)).astype(np.int32),
    "BiasAdd": lambda xp, _, x, bias: x + bias,
    "Cast": lambda xp, a, x: x.astype(a["DstT"]),
    "ConcatV2": lambda xp, _, *xs: xp.concatenate(xs[:-1], int(xs[-1])),
    "Conv2D": _conv,
    "DepthwiseConv2dNative": _depthwise,
    "ExpandDims": lambda xp, _, x, axis: xp.expand_dims(x, int(axis)),
    "FloorDiv": lambda xp, _, a, b: a // b,
    "FusedDepthwiseConv2dNative": _fused(_depthwise),
    "GatherNd": _gather_nd,
    "Identity": lambda xp, _, x: x,
    "Mul": lambda xp, _, a, b: a * b,
    "Pack": lambda xp, a, *xs: xp.stack(xs, a.get("axis", 0)),
    "RealDiv": lambda xp, _, a, b: a / b,
    "Relu": lambda xp, _, x: xp.maximum(x, 0),
    "Relu6": lambda xp, _, x: xp.clip(x, 0, 6),
    "Reshape": lambda xp, _, x, shape: x.reshape(_ints(shape)),
    "ResizeBilinear": _resize,
    "Sigmoid": _sigmoid,
    "Sqrt": lambda xp, _, x: xp.sqrt(x),
    "SquaredDifference": lambda xp, _, a, b: (a - b) ** 2,
    "Squeeze": lambda xp, a, x: xp.squeeze(x, tuple(a["squeeze_dims"])),
    "Sub": lambda xp, _, a, b: a - b,
    "Unpack": lambda xp, a, x: [xp.take(x, i, a["axis"]) for i in range(a["num"])],
    "_FusedConv2D": _fused(_conv),
}
