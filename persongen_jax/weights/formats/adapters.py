"""Converts between adapter files and the adapters on a module's layers."""

import os

import jax.numpy as jnp
import numpy as np
from flax import nnx

from persongen_jax.models.lora import (
    Adaptable,
    DoRA,
    add_adapter,
    add_change,
    changed_layers,
    loras,
)
from persongen_jax.weights.errors import KeyMismatch
from persongen_jax.weights.formats.lora.kinds import Change, LoraWeights
from persongen_jax.weights.loader import from_torch_layout, to_torch_layout, to_torch_shape

KERNEL = ("kernel",)


def check_adapters(model: nnx.Module, adapters: dict[str, dict], where: str | os.PathLike) -> None:
    """KeyMismatch unless every adapter has the sizes of its layer.

    Args:
        adapters: as read_lora returns them: component, module path, LoraWeights or Change.
        where: the file, for the message.
    """
    misshapen = {}
    for part, weights in adapters.items():
        for path, adapter in weights.items():
            layer = _find(getattr(model, part), path)
            for name, found, shape in _sizes(layer, adapter):
                if found != shape:
                    misshapen[f"{part}.{path} {name}"] = (found, shape)
    if misshapen:
        raise KeyMismatch(where, misshapen=misshapen, remedy="Check that the LoRA is for SDXL.")


def _sizes(layer, adapter):
    """(what, size in the file, size that the layer needs)."""
    shape = to_torch_shape(KERNEL, layer.kernel.shape)
    if isinstance(adapter, Change):
        for each in adapter.products:
            yield each.name, each.sizes, (shape[0], int(np.prod(shape[1:])))
        if adapter.bias is not None:
            yield "bias", adapter.bias.shape, (shape[0],)
        return
    # Some tools write linear layers as 1x1 convolutions, others 1x1 convolutions as linear.
    for half, wanted in (("down", (adapter.rank, *shape[1:])), ("up", (shape[0], adapter.rank))):
        found = getattr(adapter, half).shape
        same = _four(found) == _four(wanted)
        yield half, found, found if same else wanted


def _four(shape) -> tuple:
    return (*shape, 1, 1)[:4]


def _find(module, path: str):
    for part in path.split("."):
        module = module[int(part)] if part.isdigit() else getattr(module, part)
    return module


def apply_adapter(module: nnx.Module, weights: dict, weight: float = 1.0) -> None:
    """Apply a parsed adapter file to a module.

    Args:
        weights: dotted module path to LoraWeights or Change (weights/formats/lora/kinds.py), in
            PyTorch's layout.
        weight: factor of its effect, in addition to alpha / rank. Everything is linear in it,
            including DoRA and IA3: 0 is the unchanged layer, 1 the file as trained.
    """
    for path, adapter in weights.items():
        layer = _find(module, path)
        if isinstance(adapter, Change):
            _apply_change(layer, adapter, weight)
        else:
            _apply_lora(layer, adapter, weight)


def _apply_lora(layer, lora: LoraWeights, weight: float):
    # [r, in, kh, kw] to [kh, kw, in, r]; [r, in] to [in, r].
    down = from_torch_layout(KERNEL, lora.down)
    if len(layer.kernel.shape) == 2 and down.ndim == 4:
        down = down.reshape(down.shape[2:])
    if len(layer.kernel.shape) == 4 and down.ndim == 2:
        down = down[None, None]
    up = lora.up.reshape(lora.up.shape[:2]).T
    add_adapter(layer, down.astype("float32"), up.astype("float32"), weight * lora.scale)


def _apply_change(layer, change: Change, weight: float):
    kernel = bias = None
    if change.reads_layer:
        kernel = to_torch_layout(KERNEL, layer.kernel[...].astype(jnp.float32))
        bias = None if layer.bias is None else layer.bias[...].astype(jnp.float32)
    shape = to_torch_shape(KERNEL, layer.kernel.shape)
    of_kernel, of_bias = change.of_layer(shape, kernel, bias)
    if of_kernel is not None:
        of_kernel = weight * from_torch_layout(KERNEL, of_kernel)
    add_change(layer, of_kernel, None if of_bias is None else weight * of_bias)


def extract_adapter(module: nnx.Module) -> dict[str, LoraWeights | Change]:
    """Every LoRA of a module as LoraWeights by dotted path, in PyTorch's layout; DoRA as Change.

    ``scale`` is folded into alpha if it is equal for all ranks, which holds for a single adapter.

    Raises:
        ValueError: the adapters on a layer cannot be separated.
    """
    extracted = {}
    for path in changed_layers(module):
        name = ".".join(map(str, path))
        raise ValueError(f"{name}: has an adapter other than plain LoRA; unload it first")
    for path, lora in loras(module).items():
        down, up, scale = (np.asarray(x[...]) for x in (lora.down, lora.up, lora.scale))
        if not np.all(scale == scale[0]):
            name = ".".join(map(str, path))
            raise ValueError(f"{name}: several adapters are on this layer; unload all but one")
        down = down.transpose(3, 2, 0, 1) if down.ndim == 4 else down.T
        up = up.T[..., None, None] if down.ndim == 4 else up.T
        alpha = float(scale[0]) * down.shape[0]
        weights: LoraWeights | Change = LoraWeights(down, up, alpha)
        if isinstance(lora, DoRA):
            weights = Change((weights,), magnitude=np.asarray(lora.magnitude[...]))
        extracted[".".join(map(str, path))] = weights
    return extracted


def module_paths(module: nnx.Module) -> dict[str, tuple]:
    """Dotted path -> shape of the weight in PyTorch, for every layer that can have an adapter."""
    return {
        ".".join(map(str, path)): to_torch_shape(KERNEL, node.kernel.shape)
        for path, node in nnx.iter_graph(module)
        if isinstance(node, Adaptable)
    }
