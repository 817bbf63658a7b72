"""Maps each tensor of an adapter file to a leaf of a model, in both directions.

An adapter's file holds parts of several networks under its own names, so no single module mirrors
it. A table of slots, from key to leaf in the file's order, is filled from a file or written to one.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from persongen_jax.models.attention import MultiHeadAttention
from persongen_jax.models.lora import LoRA
from persongen_jax.parallel.sharding import put_array
from persongen_jax.weights.errors import KeyMismatch, WeightsError
from persongen_jax.weights.files.pickles import write_pickle
from persongen_jax.weights.files.safetensors_file import write_safetensors
from persongen_jax.weights.files.source import TensorSource
from persongen_jax.weights.loader import (
    from_torch_layout,
    parameter_leaves,
    to_torch_layout,
    to_torch_shape,
    torch_key,
)


class Slot:
    """One leaf of the model and its counterpart in the file: another layout, ``factor`` times it.

    Args:
        path: of the leaf; its last part determines the layout.
        variable: the nnx.Variable.
    """

    def __init__(self, path: tuple, variable: nnx.Variable, factor: float = 1.0):
        self.path, self.variable, self.factor = path, variable, factor
        self.leaf = variable.get_value()
        self.shape = to_torch_shape(path, self.leaf.shape)
        self.dtype = self.leaf.dtype

    def set(self, array: np.ndarray) -> None:
        """Fill the leaf: cast to its dtype, on its devices."""
        array = from_torch_layout(self.path, array)
        if self.factor != 1:
            array = array.astype(np.float32) / np.float32(self.factor)
        array = np.ascontiguousarray(array.astype(self.dtype))
        self.variable.set_value(put_array(array, self.leaf.sharding))

    def get(self) -> np.ndarray:
        """The array to write to the file, in the leaf's stored dtype."""
        array = np.asarray(jax.device_get(self.leaf))
        if self.factor != 1:
            array = (array.astype(np.float32) * np.float32(self.factor)).astype(array.dtype)
        return np.ascontiguousarray(to_torch_layout(self.path, array))


class Computed:
    """An array to write that is not a leaf of the model; it can be written, not filled."""

    def __init__(self, array: np.ndarray):
        self.array, self.shape, self.dtype = array, array.shape, array.dtype

    def get(self) -> np.ndarray:
        return self.array


def module_slots(
    module: nnx.Module, prefix: str, order: Sequence[str] | None = None
) -> dict[str, Slot]:
    """A slot for each parameter of ``module``, by ``prefix`` and PyTorch's key.

    ``order``: the module's direct children in the file, in its order; None: all of them.
    """
    paths = list(parameter_leaves(module))
    if order is not None:
        paths = [path for part in order for path in paths if path[0] == part]
    return {prefix + torch_key(path): Slot(path, _variable_at(module, path)) for path in paths}


def lora_slots(name: str, lora: LoRA, scale: float) -> dict[str, Slot]:
    """The slots ``<name>_lora.down.weight`` and ``.up.weight`` of a format without alphas.

    Their scale is 1, so the file's ``up`` is ``scale`` times the model's.
    """
    # The file stores both halves transposed, like kernels.
    return {
        f"{name}_lora.down.weight": Slot(("kernel",), lora.down),
        f"{name}_lora.up.weight": Slot(("kernel",), lora.up, scale),
    }


def only_scale(lora: LoRA, name: str) -> float:
    """The scale of a layer's only LoRA; WeightsError if there are several, or it is 0."""
    scales = np.unique(np.asarray(lora.scale.get_value()))
    if len(scales) != 1 or scales[0] == 0:
        raise WeightsError(
            f"{name}: a LoRA of scale {scales.tolist()}. The format holds one LoRA, with a "
            "scale that is not 0; unload all others."
        )
    return float(scales[0])


def processors(unet: Any) -> dict[str, MultiHeadAttention]:
    """The UNet's attention layers, named and ordered like diffusers' attention processors.

    That order is down, up, mid, in which its UNet registers them; in each transformer block the
    self-attention comes first, so of the numbers 0, 1, … the odd ones are cross-attention.
    """
    stages = [
        *((f"down_blocks.{i}", block) for i, block in enumerate(unet.down_blocks)),
        *((f"up_blocks.{i}", block) for i, block in enumerate(unet.up_blocks)),
        ("mid_block", unet.mid_block),
    ]
    found = {}
    for stage, block in stages:
        for i, transformer in enumerate(block.attentions or ()):
            for j, layer in enumerate(transformer.transformer_blocks):
                name = f"{stage}.attentions.{i}.transformer_blocks.{j}"
                found[f"{name}.attn1"], found[f"{name}.attn2"] = layer.attn1, layer.attn2
    return found


def _variable_at(module, path):
    for part in path:
        module = module[part] if isinstance(part, int) else getattr(module, part)
    return module


def fill_slots(slots: dict[str, Slot], source: TensorSource) -> None:
    """Fill every slot from the tensor of its key, one at a time.

    Raises:
        KeyMismatch: a tensor missing, unexpected or misshapen; all are listed, nothing is filled.
    """
    found = set(source.keys())
    misshapen = {}
    for key in sorted(found & slots.keys()):
        shape = tuple(source.info(key)[1])
        if shape != slots[key].shape:
            misshapen[key] = (shape, slots[key].shape)
    missing, unexpected = sorted(slots.keys() - found), sorted(found - slots.keys())
    if missing or unexpected or misshapen:
        raise KeyMismatch(source.describe(), missing, unexpected, misshapen)
    for key, slot in slots.items():
        array = source.read(key)
        if not np.isfinite(array.astype(np.float32)).all():
            raise WeightsError(
                f"{source.describe()}: {key!r} holds values that are not finite: its training has "
                "failed. Use an earlier checkpoint of it."
            )
        slot.set(array)


def write_slots(
    path: str | os.PathLike,
    slots: Mapping[str, Slot | Computed],
    notes: dict[str, str] | None = None,
    *,
    nested: bool = True,
) -> None:
    """Write a file of the slots' tensors, in their order, atomically.

    Args:
        path: "….safetensors"; or "….bin", a torch pickle (it needs the convert extra) of one
            dictionary per first word of the keys, or if not ``nested`` of one for all.
        notes: for the metadata of a ".safetensors" file; a pickle has no place for them.

    Raises:
        WeightsError: another extension.
        MissingDependency: ``.bin`` without PyTorch.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        entries = [(key, slot.shape, slot.dtype, slot.get) for key, slot in slots.items()]
        write_safetensors(path, entries, {"format": "pt", **(notes or {})})
    elif path.suffix == ".bin":
        _write_pickle(path, slots, nested)
    else:
        raise WeightsError(f"{path}: the extension must be .safetensors or .bin")


def _write_pickle(path, slots, nested):
    content: dict[str, Any] = {}
    for key, slot in slots.items():
        part, _, name = key.partition(".")
        if nested:
            content.setdefault(part, {})[name] = slot.get()
        else:
            content[key] = slot.get()
    write_pickle(path, content)


__all__ = [
    "Computed",
    "Slot",
    "fill_slots",
    "lora_slots",
    "module_slots",
    "only_scale",
    "processors",
    "write_slots",
]
