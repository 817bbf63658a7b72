"""ONNX graphs of face networks: quantised weights multiplied out, and sessions that run them.

OpenCV's model zoo publishes float files and int8 files whose weights are quantised in blocks
(DequantizeLinear with ``block_size``, ONNX operator set 21). onnxruntime refuses those with one
scale for all blocks, so the weights are multiplied out before anything runs; activations are float
in both.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np


class GraphError(ValueError):
    """A file that is not the graph that it should be; the message names it and the remedy."""


def read_graph(path: str | os.PathLike) -> Any:
    """The onnx.ModelProto of a file, its weights float and each of them an initialiser.

    Raises:
        FileNotFoundError, GraphError: no such file, or not an ONNX graph.
        ImportError: the package onnx is missing.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file. Give the .onnx file's path.")
    try:
        import onnx
        from google.protobuf.message import DecodeError
    except ImportError as error:
        raise ImportError(
            f"{path}: ONNX files need the package onnx: pip install 'persongen_jax[faces]'"
        ) from error
    try:
        model = onnx.ModelProto.FromString(path.read_bytes())
    except DecodeError as error:
        raise GraphError(
            f"{path}: not an ONNX file, or damaged ({error}); fetch it again"
        ) from error
    if not model.graph.node:
        raise GraphError(f"{path}: not an ONNX file: there is no graph in it; fetch it again")
    fold_weights(model.graph, path)
    return model


def fold_weights(graph: Any, path: str | os.PathLike = "the graph") -> None:
    """Replace DequantizeLinear and Reshape of weights by their results, in place.

    A weight is (quantised - zero point) * scale, each scale for ``block_size`` neighbours along
    ``axis`` (for all of them if it is a scalar).
    """
    from onnx import numpy_helper

    tensors = {tensor.name: tensor for tensor in graph.initializer}
    arrays: dict[str, np.ndarray] = {}  # by name: what is known before the graph runs

    def known(name):
        if name not in arrays and name in tensors:
            arrays[name] = numpy_helper.to_array(tensors[name])
        return arrays.get(name)

    made, kept = {}, []
    for node in graph.node:
        inputs = [known(name) for name in node.input]
        if node.op_type not in ("DequantizeLinear", "Reshape") or any(x is None for x in inputs):
            kept.append(node)
            continue
        attributes = {a.name: a.i for a in node.attribute}
        try:
            if node.op_type == "Reshape":
                value = inputs[0].reshape(inputs[1].tolist())
            else:
                value = dequantised(*inputs, **attributes)
        except ValueError as error:
            raise GraphError(
                f"{path}: the weight {node.output[0]!r} cannot be read ({error}); fetch it again"
            ) from error
        arrays[node.output[0]] = made[node.output[0]] = value
    used = {name for node in kept for name in node.input} | {out.name for out in graph.output}
    values = [numpy_helper.from_array(made[name], name) for name in made if name in used]
    values += [tensor for name, tensor in tensors.items() if name in used]
    # Some exporters list weights as inputs too, under their names before they were quantised.
    inputs = [v for v in graph.input if v.name in used and v.name not in tensors]
    for field, new in (("node", kept), ("initializer", values), ("input", inputs)):
        del getattr(graph, field)[:]
        getattr(graph, field).extend(new)


def dequantised(
    quantised: np.ndarray,
    scale: np.ndarray,
    zero: np.ndarray | None = None,
    *,
    axis: int = 1,
    block_size: int = 0,
    **_: int,
) -> np.ndarray:
    """The float32 values of DequantizeLinear: one scale, one per ``axis``, or one per block."""
    values = quantised.astype(np.float32)
    shift = np.zeros_like(scale) if zero is None else zero.astype(np.float32)
    if scale.size == 1:
        return (values - shift.reshape(())) * scale.reshape(()).astype(np.float32)
    if block_size and scale.ndim == values.ndim:
        cut = [slice(None)] * values.ndim
        cut[axis] = slice(values.shape[axis])
        scale, shift = (np.repeat(x, block_size, axis)[tuple(cut)] for x in (scale, shift))
    elif scale.ndim == 1:
        shape = [1] * values.ndim
        shape[axis] = len(scale)
        scale, shift = scale.reshape(shape), shift.reshape(shape)
    return (values - shift) * scale.astype(np.float32)


def open_session(model: Any, threads: int = 1) -> Any:
    """An onnxruntime.InferenceSession of a model on the CPU.

    Raises:
        ImportError: onnxruntime is missing.
        GraphError: it cannot run the graph.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise ImportError(
            "finding faces needs onnxruntime: pip install 'persongen_jax[faces]'"
        ) from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = threads
    options.log_severity_level = 3  # errors alone
    # Its threads would wait in a loop, and take the cores from whoever works in between.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # onnxruntime's own classes are not public
        raise GraphError(f"onnxruntime cannot run this graph: {error}") from error
