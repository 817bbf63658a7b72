"""Embeddings of scalars: timesteps and SDXL's micro-conditioning."""

import math
from typing import Unpack

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from persongen_jax.models.layers import LayerOptions, Linear
from persongen_jax.models.ops import activation


def sinusoidal_embedding(
    values: jax.Array, features: int, *, flip_sin_to_cos: bool = True, freq_shift: float = 0
) -> jax.Array:
    """[n] scalars to [n, features] in float32 (DDPM, arXiv 2006.11239, after 1706.03762)."""
    half = features // 2
    exponent = -math.log(10000.0) * jnp.arange(half, dtype=jnp.float32) / (half - freq_shift)
    angles = values.astype(jnp.float32)[:, None] * jnp.exp(exponent)
    sin, cos = jnp.sin(angles), jnp.cos(angles)
    embedding = jnp.concatenate([cos, sin] if flip_sin_to_cos else [sin, cos], axis=-1)
    return jnp.pad(embedding, ((0, 0), (0, features % 2)))


class TimestepEmbedding(nnx.Module):
    """Two linear layers: [b, in] to [b, features]."""

    def __init__(
        self, in_features: int, features: int, *, act: str = "silu", **kw: Unpack[LayerOptions]
    ):
        self.act = act
        self.linear_1 = Linear(in_features, features, **kw)
        self.linear_2 = Linear(features, features, **kw)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.linear_2(activation(self.act)(self.linear_1(x)))


class GaussianFourierProjection(nnx.Module):
    """Random frequencies of a noise level's logarithm, [b] to [b, 2 * features] float32.

    Song et al., arXiv 2011.13456, appendix C.2. The frequencies are drawn once and not trained.
    """

    def __init__(
        self,
        features: int,
        *,
        scale: float,
        dtype: DTypeLike,
        param_dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        del dtype
        drawn = scale * jax.random.normal(rngs.params(), (features,))
        self.scale = nnx.Param(drawn.astype(param_dtype))

    def __call__(self, values: jax.Array) -> jax.Array:
        frequencies = jax.lax.stop_gradient(self.scale[...].astype(jnp.float32))
        angles = jnp.log(values.astype(jnp.float32))[:, None] * frequencies * 2 * math.pi
        return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
