"""FaceCDM's projection of an embedding to tokens: reduce its dimensions, then uplift them.

The seed's text says that the features are first reduced, so that the model learns the most useful
ones, and then uplifted; sizes and the norm are ours (docs/facecdm.md).
"""

from typing import Unpack

import jax
from flax import nnx

from persongen_jax.models.layers import LayerNorm, LayerOptions, Linear


class ReduceAndUplift(nnx.Module):
    """[..., in_features] to [..., num_tokens, features], by way of ``reduced`` features."""

    def __init__(
        self,
        in_features: int,
        features: int,
        *,
        num_tokens: int = 4,
        reduced: int = 128,
        **kw: Unpack[LayerOptions],
    ):
        self.num_tokens = num_tokens
        self.reduce = Linear(in_features, reduced, **kw)
        self.uplift = Linear(reduced, num_tokens * features, **kw)
        self.norm = LayerNorm(features, **kw)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.uplift(jax.nn.gelu(self.reduce(x), approximate=False))
        return self.norm(x.reshape(*x.shape[:-1], self.num_tokens, -1))
