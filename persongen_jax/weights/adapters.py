"""Between LoRA files and the adapters on a module's layers."""

import numpy as np
from flax import nnx

from persongen_jax.models.lora import add_adapter, lora_layers
from persongen_jax.weights.errors import KeyMismatch
from persongen_jax.weights.loader import to_torch_shape
from persongen_jax.weights.lora_files import LoraWeights


def check_adapters(model, adapters: dict[str, dict], where):
    """KeyMismatch unless every pair of factors has the sizes of the layer it is for.

    Args:
        adapters: as read_lora returns them: component, module path, LoraWeights.
        where: the file, for the message.
    """
    misshapen = {}
    for part, weights in adapters.items():
        for path, lora in weights.items():
            kernel = _find(getattr(model, part), path).kernel
            out, *rest = to_torch_shape(("kernel",), kernel.shape)
            wanted = {"down": (lora.rank, *rest), "up": (out, lora.rank)}
            for half, shape in wanted.items():
                found = getattr(lora, half).shape
                if _four(found) != _four(shape):
                    misshapen[f"{part}.{path} {half}"] = (found, shape)
    if misshapen:
        raise KeyMismatch(where, misshapen=misshapen, remedy="Check that the LoRA is for SDXL.")


def _four(shape) -> tuple:
    """Some tools write linear layers as 1x1 convolutions, some 1x1 convolutions as linear."""
    return (*shape, 1, 1)[:4]


def _find(module, path: str):
    for part in path.split("."):
        module = module[int(part)] if part.isdigit() else getattr(module, part)
    return module


def apply_adapter(module, weights: dict, weight: float = 1.0):
    """Put a parsed LoRA file on a module.

    Args:
        weights: dotted module path to LoraWeights (weights/lora_files.py), in PyTorch's layout.
        weight: factor of its effect, on top of alpha / rank.
    """
    for path, lora in weights.items():
        layer = _find(module, path)
        # [r, in, kh, kw] to [kh, kw, in, r]; [r, in] to [in, r].
        down = lora.down.transpose(2, 3, 1, 0) if lora.down.ndim == 4 else lora.down.T
        if len(layer.kernel.shape) == 2 and down.ndim == 4:
            down = down.reshape(down.shape[2:])
        if len(layer.kernel.shape) == 4 and down.ndim == 2:
            down = down[None, None]
        up = lora.up.reshape(lora.up.shape[:2]).T
        add_adapter(layer, down.astype("float32"), up.astype("float32"), weight * lora.scale)


def extract_adapter(module) -> dict[str, LoraWeights]:
    """Every adapter of a module as LoraWeights by dotted path, in PyTorch's layout.

    ``scale`` is folded into alpha where it is the same for all ranks, which it is for one adapter.
    """
    extracted = {}
    for path, layer in lora_layers(module).items():
        lora = layer.lora
        down, up, scale = (np.asarray(x[...]) for x in (lora.down, lora.up, lora.scale))
        if not np.all(scale == scale[0]):
            name = ".".join(map(str, path))
            raise ValueError(f"{name}: several adapters lie on this layer; unload all but one")
        down = down.transpose(3, 2, 0, 1) if down.ndim == 4 else down.T
        up = up.T[..., None, None] if down.ndim == 4 else up.T
        alpha = float(scale[0]) * down.shape[0]
        extracted[".".join(map(str, path))] = LoraWeights(down, up, alpha)
    return extracted


def module_paths(module) -> set[str]:
    """Dotted paths of every layer that can carry an adapter."""
    return {
        ".".join(map(str, path))
        for path, node in nnx.iter_graph(module)
        if isinstance(node, nnx.Module) and hasattr(node, "lora")
    }
