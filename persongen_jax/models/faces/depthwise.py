"""Depthwise 3×3 convolution, which the small face networks are made of."""

import functools
import operator

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from persongen_jax.models.layers import uniform


class DepthwiseConv(nnx.Module):
    """One 3×3 kernel per channel, padded by one: [b, h, w, c] to [b, h / strides, w / strides, c].

    A sum of nine shifted products, which compilers fuse into one pass over memory; grouped
    convolutions are several times slower in XLA on CPUs.
    """

    def __init__(
        self,
        features: int,
        *,
        strides: int = 1,
        use_bias: bool = True,
        dtype: DTypeLike,
        param_dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        self.dtype, self.strides = dtype, strides
        self.kernel = nnx.Param(uniform(rngs, (3, 3, 1, features), 9, param_dtype))
        self.bias = nnx.Param(uniform(rngs, (features,), 9, param_dtype)) if use_bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x.astype(self.dtype)
        kernel = self.kernel[...].astype(self.dtype)
        height, width = x.shape[1:3]
        padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        step = self.strides
        taps = [
            padded[:, i : i + height : step, j : j + width : step] * kernel[i, j, 0]
            for i in range(3)
            for j in range(3)
        ]
        y = functools.reduce(operator.add, taps)
        return y if self.bias is None else y + self.bias[...].astype(self.dtype)
