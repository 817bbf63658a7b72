"""Scales prompt embeddings to unit size, as in SDXL, without any other change.

The trained text towers' residual streams have a standard deviation of about 5. ID encoders end in a
LayerNorm whose output has 1: next to such neighbours the identity would have little effect. The
towers are pre-norm, so shrinking everything that is added to the stream shrinks the hidden states
and changes no output after a norm; the UNet's kernels that read them grow by the same factor.
"""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from flax import nnx

from persongen_jax.models.encoders.clip import CLIPTextModel
from persongen_jax.models.sdxl.unet import UNet2DConditionModel


def measure_scale(tower: CLIPTextModel, input_ids: np.ndarray) -> float:
    """Standard deviation of the penultimate hidden state, [b, n] ids."""
    return float(np.std(tower(jnp.asarray(input_ids)).hidden_states[-2]))


def shrink(tower: CLIPTextModel, factor: float) -> None:
    """Divide the tower's residual stream by ``factor``, in place."""
    embeddings = tower.embeddings
    leaves = [embeddings.token_embedding.embedding, embeddings.position_embedding.embedding]
    for layer in tower.encoder.layers:
        for linear in (layer.self_attn.out_proj, layer.mlp.fc2):
            leaves += [leaf for leaf in (linear.kernel, linear.bias) if leaf is not None]
    for leaf in leaves:
        leaf.set_value(leaf.get_value() / factor)


def grow_readers(unet: UNet2DConditionModel, factors: np.ndarray) -> None:
    """Multiply the rows of attn2's to_k and to_v by ``factors`` [cross_attention_dim], in place."""
    for path, leaf in nnx.to_flat_state(nnx.state(unet, nnx.Param)):
        if "attn2" in path and path[-2] in ("to_k", "to_v"):
            leaf.set_value(leaf.get_value() * factors[:, None])


def to_unit_scale(
    towers: Sequence[CLIPTextModel], unet: UNet2DConditionModel, input_ids: np.ndarray
) -> None:
    """Scale both towers (in the order of concatenation) and the UNet, in place; ids [b, 2, n]."""
    factors = [measure_scale(tower, input_ids[:, i]) for i, tower in enumerate(towers)]
    for tower, factor in zip(towers, factors, strict=True):
        shrink(tower, factor)
    widths = [tower.config["hidden_size"] for tower in towers]
    grow_readers(unet, np.repeat(np.asarray(factors, np.float32), widths))
