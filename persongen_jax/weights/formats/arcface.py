"""ArcFace recognisers: arcface_torch's files, and the .onnx files of InsightFace's model packs."""

import math
import os
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.typing import DTypeLike

from persongen_jax.models.faces.iresnet import EPS, IResNet
from persongen_jax.models.layers import UnusedRngs
from persongen_jax.parallel.sharding import Shardings
from persongen_jax.weights.errors import BadOnnx, MissingFile
from persongen_jax.weights.files.directory import open_file
from persongen_jax.weights.files.onnx_file import Node, OnnxFile
from persongen_jax.weights.files.source import RenamedSource, Renaming, TensorSource, Transform
from persongen_jax.weights.loader import load_module
from persongen_jax.weights.recognition.arcface import infer_config

INSIGHTFACE_LICENCE = (
    "InsightFace's pretrained models, and what is trained on its data sets, are for "
    "non-commercial research only"
)
AURAFACE_LICENCE = "fal/AuraFace-v1: Apache-2.0"

# A batch counter that PyTorch stores next to the running statistics; unused here.
COUNTER = ".num_batches_tracked"

# Defaults of the significant attributes, for nodes that omit them.
ONNX_DEFAULTS: dict[str, dict[str, Any]] = {
    "Conv": {
        "strides": [1, 1],
        "pads": [0, 0, 0, 0],
        "dilations": [1, 1],
        "group": 1,
        "auto_pad": "NOTSET",
    },
    "BatchNormalization": {"epsilon": 1e-5, "training_mode": 0},
    "PRelu": {},
    "Add": {},
    "Flatten": {"axis": 1},
    "Gemm": {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 0},
}

# [c, 1, 1] -> [c]: ONNX broadcasts a PReLU's slopes over (c, h, w).
SLOPES = Transform(
    lambda shape: shape[:1] if set(shape[1:]) <= {1} else shape,
    lambda array: array.reshape(array.shape[0]) if set(array.shape[1:]) <= {1} else array,
)


class Recogniser(NamedTuple):
    """The result of :func:`load_arcface`.

    model: maps images [b, s, s, 3] in [-1, 1] to raw embeddings [b, d].
    licence: what is known about the weights' licence, in one line.
    """

    model: Any
    licence: str


def load_arcface(
    path: str | os.PathLike,
    *,
    input_size: int | None = None,
    licence: str | None = None,
    dtype: DTypeLike = jnp.float32,
    param_dtype: DTypeLike | None = None,
    shardings: Shardings | None = None,
) -> Recogniser:
    """Open a face recogniser of any depth and width.

    Args:
        path: arcface_torch's ``.pth`` (needs the convert extra), ``.safetensors`` with the same
            keys, or an ``.onnx`` such as buffalo_l's ``w600k_r50.onnx``.
        input_size: side of the crops in pixels; None for the largest that the file allows, which
            is 112 for all published ones.
        licence: what the caller knows about it; None: derived from the path.
        dtype: of the computation; param_dtype: of the stored weights, by default the same.
        shardings: as ``load_module``'s.

    Raises:
        MissingFile: there is none; the message says what to download.
        BadOnnx: an ``.onnx`` that is damaged, or whose graph is not an IResNet.
        WeightsError: any other fault of the file, including KeyMismatch and BadConfig.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingFile(
            f"{path}: no such file. Face similarity needs an ArcFace recogniser: w600k_r50.onnx "
            "from https://github.com/deepinsight/insightface/releases/download/v0.7/buffalo_l.zip "
            f"({INSIGHTFACE_LICENCE}), or glintr100.onnx from "
            "https://huggingface.co/fal/AuraFace-v1 (Apache-2.0). Give the downloaded file's path."
        )
    with open_arcface(path) as source:
        config = infer_config(source, input_size)
        model = load_module(
            lambda: IResNet(
                config,
                dtype=dtype,
                param_dtype=dtype if param_dtype is None else param_dtype,
                rngs=UnusedRngs(),
            ),
            source,
            shardings=shardings,
        )
    return Recogniser(model, licence_hint(path) if licence is None else licence)


def licence_hint(path: str | os.PathLike) -> str:
    """The weights' licence as far as the path shows it.

    InsightFace's and fal's files share names and layout; "auraface" anywhere in the path marks
    fal's. Everything else with this layout counts as InsightFace's, the stricter of the two.
    """
    known = "auraface" in str(Path(path).absolute()).lower()
    return AURAFACE_LICENCE if known else INSIGHTFACE_LICENCE


def open_arcface(path: str | os.PathLike) -> TensorSource:
    """The tensors of a recogniser's file under arcface_torch's keys, batch counters ignored."""
    if Path(path).suffix == ".onnx":
        return name_onnx_tensors(OnnxFile(path))
    file = open_file(path)
    renaming = Renaming(file)
    for key in file.keys():
        if key.endswith(COUNTER):
            renaming.ignore(key)
        else:
            renaming.add(key, key)
    return renaming.source()


def name_onnx_tensors(file: OnnxFile) -> RenamedSource:
    """An IResNet's graph as tensors with arcface_torch's keys.

    Exporters fold a BatchNormalization into the Conv before it and number the results, so tensors
    are named by their place in the graph. A folded Conv gets a bias and no norm; a norm that was
    not folded keeps its own name.

    Raises:
        BadOnnx: the graph is not an IResNet; the message names the offending operation.
    """
    return _Walk(file).run()


class _Walk:
    """Follows the image through the graph and names the tensors of each operation."""

    def __init__(self, file: OnnxFile):
        self.file = file
        self.renaming = Renaming(file)
        self.visited = set()
        # Exporters store equal tensors once, with an Identity for each additional use.
        self.alias = {}
        self.users: dict[str, list[Node]] = {}
        for node in file.nodes:
            if node.op == "Identity" and node.inputs and node.outputs:
                self.alias[node.outputs[0]] = self.origin(node.inputs[0])
                continue
            for name in dict.fromkeys(node.inputs):
                self.users.setdefault(self.origin(name), []).append(node)

    def run(self) -> RenamedSource:
        if len(self.file.inputs) != 1 or len(self.file.outputs) != 1:
            raise self.error(
                f"inputs {self.file.inputs} and outputs {self.file.outputs}, not 1 each"
            )
        x = self.conv(self.file.inputs[0], "conv1", "bn1", strides=1, side=3)
        x = self.prelu(x, "prelu")
        stage, block = 0, 0
        # A block's input goes into its first norm and its skip, the last output only into bn2.
        while len(self.users.get(x, ())) == 2:
            if any(node.op == "Conv" for node in self.users[x]):
                stage, block = stage + 1, 0
            else:
                block += 1
            x = self.block(x, f"layer{stage}.{block}", strides=1 if block else 2)
        x = self.norm(x, "bn2")
        x = self.step(x, "Flatten").outputs[0]
        fc = self.step(x, "Gemm", transB=1)
        self.name(fc, ("", "fc.weight", "fc.bias"))
        x = self.norm(fc.outputs[0], "features")
        if x != self.origin(self.file.outputs[0]) or self.users.get(x):
            raise self.error(f"it does not end with the last norm's output {x!r}")
        left = [node.op for node in self.file.nodes if id(node) not in self.visited]
        if left := [op for op in left if op != "Identity"]:
            raise self.error(f"operations that an IResNet lacks: {', '.join(left[:5])}")
        return self.renaming.source()

    def block(self, x, name, strides):
        y = self.norm(x, f"{name}.bn1")
        y = self.conv(y, f"{name}.conv1", f"{name}.bn2", strides=1, side=3)
        y = self.prelu(y, f"{name}.prelu")
        y = self.conv(y, f"{name}.conv2", f"{name}.bn3", strides=strides, side=3)
        skip = x
        if strides != 1:
            names = f"{name}.downsample.0", f"{name}.downsample.1"
            skip = self.conv(x, *names, strides=strides, side=1)
        add = self.step(y, "Add")
        if {self.origin(i) for i in add.inputs} != {y, skip}:
            raise self.error(f"{name} adds {add.inputs} in place of {[y, skip]}")
        return add.outputs[0]

    def conv(self, x, name, norm_name, *, strides, side):
        pad = side // 2
        node = self.step(x, "Conv", strides=[strides, strides], pads=[pad] * 4)
        self.name(node, ("", f"{name}.weight", f"{name}.bias"))
        y = node.outputs[0]
        norms = [user for user in self.users.get(y, ()) if user.op == "BatchNormalization"]
        return self.norm(y, norm_name) if norms else y

    def norm(self, x, name):
        node = self.step(x, "BatchNormalization", epsilon=EPS)
        leaves = ("weight", "bias", "running_mean", "running_var")
        self.name(node, ("", *(f"{name}.{leaf}" for leaf in leaves)))
        return node.outputs[0]

    def prelu(self, x, name):
        node = self.step(x, "PRelu")
        self.name(node, ("", f"{name}.weight"), SLOPES)
        return node.outputs[0]

    def step(self, x, op, **changes) -> Node:
        """The only user of ``x`` of this kind; its attributes are the defaults with ``changes``."""
        users = self.users.get(x, [])
        found = [node for node in users if node.op == op and id(node) not in self.visited]
        if len(found) != 1 or not found[0].outputs:
            raise self.error(
                f"{x!r} should go into one {op}, and goes into "
                f"{', '.join(node.op for node in users) or 'nothing'}"
            )
        node = found[0]
        for key, default in ONNX_DEFAULTS[op].items():
            wanted, value = changes.get(key, default), node.attributes.get(key, default)
            same = value == wanted
            if isinstance(value, float) and isinstance(wanted, float):
                same = math.isclose(value, wanted, rel_tol=1e-6)  # it is float32 in the file
            if not same:
                raise self.error(f"{op} behind {x!r} has {key}={value!r}, not {wanted!r}")
        self.visited.add(id(node))
        return node

    def name(self, node, names, transform=None):
        """Name the node's inputs, which are tensors of the file; "" means no tensor."""
        if not 1 < len(node.inputs) <= len(names):
            raise self.error(f"{node.op} has {len(node.inputs)} inputs")
        for value, name in zip(node.inputs, names, strict=False):
            origin = self.origin(value)
            if not name or not origin:
                continue
            if origin not in self.file:
                raise self.error(f"{name} is computed in the graph ({origin!r}), not stored")
            self.renaming.add(name, origin, transform)

    def origin(self, name):
        return self.alias.get(name, name)

    def error(self, reason):
        return BadOnnx(
            f"{self.file.describe()}: {reason}. Only ArcFace IResNets, as InsightFace exports "
            "them, can be read from .onnx."
        )


__all__ = [
    "AURAFACE_LICENCE",
    "INSIGHTFACE_LICENCE",
    "Recogniser",
    "licence_hint",
    "load_arcface",
    "name_onnx_tensors",
    "open_arcface",
]
