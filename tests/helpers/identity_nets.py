"""A face recogniser with random weights, as small as one can be, for methods that read one."""

import math
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from flax import nnx

from persongen_jax.models.faces.iresnet import IResNet
from persongen_jax.models.layers import UnusedRngs
from persongen_jax.weights.loader import parameter_leaves
from persongen_jax.weights.saver import save_module


def write_recogniser(folder: Path, embedding_dim: int, input_size: int = 16) -> Path:
    """Write its folder; return the file in it, which is what a method is given."""
    config = {"layers": [1, 1], "widths": [4, 8], "embedding_dim": embedding_dim}
    config |= {"input_size": input_size, "in_channels": 3, "folded": False}
    kw = {"dtype": jnp.float32, "param_dtype": jnp.float32, "rngs": UnusedRngs()}
    net, rng = IResNet(config, **kw), np.random.default_rng(0)
    for path, leaf in parameter_leaves(net).items():
        if path[-1] in ("scale", "var", "slope"):
            value = rng.uniform(0.5, 1.5, leaf.shape)
        else:
            fan_in = math.prod(leaf.shape[:-1]) or 1
            value = rng.normal(size=leaf.shape) / math.sqrt(fan_in)
        _set(net, path, value)
    save_module(net, folder, config, file_name="model.safetensors")
    return folder / "model.safetensors"


def _set(module, path, value):
    for part in path:
        module = module[part] if isinstance(part, int) else getattr(module, part)
    assert isinstance(module, nnx.Variable)
    module.set_value(jnp.asarray(value, jnp.float32))
