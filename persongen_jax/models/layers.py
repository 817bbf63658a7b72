"""The few layers that every network here is made of.

All of them have a compute ``dtype`` separate from the storage ``param_dtype``, so that frozen
weights can be stored in bfloat16 while the arithmetic runs in float32 and the other way round.
Normalisation statistics are always taken in float32, or float64 of such. Arrays are NHWC.
"""

import math
from typing import TypedDict

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.typing import DTypeLike

from persongen_jax.models.lora import Adaptable, LayerChange, LoRA
from persongen_jax.models.ops import Padding, conv2d, conv2d_upsampled


def uniform(rngs: nnx.Rngs, shape: tuple[int, ...], fan_in: int, dtype: DTypeLike) -> jax.Array:
    """U(-1/sqrt(fan_in), 1/sqrt(fan_in)), PyTorch's initialisation of linear and conv layers."""
    bound = 1.0 / math.sqrt(fan_in)
    return jax.random.uniform(rngs.params(), shape, jnp.float32, -bound, bound).astype(dtype)


class LayerOptions(TypedDict):
    """The arguments that all layers share, and that networks pass down to theirs."""

    dtype: DTypeLike
    param_dtype: DTypeLike
    rngs: nnx.Rngs


class UnusedRngs(nnx.Rngs):
    """Replaces nnx.Rngs where a module is only traced, to be filled with loaded weights.

    Counting keys inside a trace costs time quadratic in the number of layers.
    """

    def params(self) -> jax.Array:
        return jax.random.key(0)


class Linear(Adaptable):
    """``y = x @ kernel + bias`` over the last axis: [..., in] to [..., out]."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        use_bias: bool = True,
        dtype: DTypeLike,
        param_dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        self.dtype = dtype
        self.kernel = nnx.Param(
            uniform(rngs, (in_features, out_features), in_features, param_dtype)
        )
        self.bias = (
            nnx.Param(uniform(rngs, (out_features,), in_features, param_dtype))
            if use_bias
            else None
        )
        self.lora: LoRA | None = nnx.data(None)
        self.change: LayerChange | None = nnx.data(None)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x.astype(self.dtype)
        return self.multiply(jnp.matmul, x, self.lora)


class Conv(Adaptable):
    """2-D convolution, [b, h, w, in] to [b, h', w', out]; kernel HWIO.

    ``kernel_size`` is the side of a square, or (height, width). ``padding`` is PyTorch's: that many
    zeros on every side, or ((top, bottom), (left, right)).
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: int | tuple[int, int],
        *,
        strides: int = 1,
        padding: int | Padding = 0,
        use_bias: bool = True,
        dtype: DTypeLike,
        param_dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        self.dtype = dtype
        self.strides = strides
        self.padding = ((padding, padding),) * 2 if isinstance(padding, int) else padding
        sides = (kernel_size,) * 2 if isinstance(kernel_size, int) else kernel_size
        fan_in = in_features * math.prod(sides)
        shape = (*sides, in_features, out_features)
        self.kernel = nnx.Param(uniform(rngs, shape, fan_in, param_dtype))
        self.bias = (
            nnx.Param(uniform(rngs, (out_features,), fan_in, param_dtype)) if use_bias else None
        )
        self.lora: LoRA | None = nnx.data(None)
        self.change: LayerChange | None = nnx.data(None)

    def __call__(self, x: jax.Array, *, infer: bool = False) -> jax.Array:
        """``infer``: choose what is fastest where no gradient is taken."""
        x = x.astype(self.dtype)

        def product(x, kernel):
            return conv2d(x, kernel, self.strides, self.padding, infer=infer)

        def low_rank(x):
            return self.lora.conv(x, self.strides, self.padding)  # type: ignore[union-attr]

        return self.multiply(product, x, low_rank if self.lora is not None else None)

    def upsampled(self, x: jax.Array) -> jax.Array:
        """The layer on ``x`` at twice its size; for a 3x3 kernel without LoRA, padded by one."""
        return self.multiply(conv2d_upsampled, x.astype(self.dtype))


FIRST_ADDED = 1 << 20  # the id of an Embed's first added row; no vocabulary is as large


class Embed(nnx.Module):
    """Looks up rows of a table: integer ids [...] to [..., features].

    ``added`` [n, features] holds rows of words that are in no vocabulary, with the ids FIRST_ADDED,
    FIRST_ADDED + 1, …; None: there are none. They can be trained while the table is frozen.
    """

    def __init__(
        self,
        num_embeddings: int,
        features: int,
        *,
        dtype: DTypeLike,
        param_dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        self.dtype = dtype
        table = 0.02 * jax.random.normal(rngs.params(), (num_embeddings, features))
        self.embedding = nnx.Param(table.astype(param_dtype))
        self.added: nnx.Param | None = nnx.data(None)

    def __call__(self, ids: jax.Array) -> jax.Array:
        if self.added is None:
            return jnp.take(self.embedding[...], ids, axis=0).astype(self.dtype)
        own = ids - FIRST_ADDED
        rows = jnp.take(self.embedding[...], jnp.where(own < 0, ids, 0), axis=0)
        added = jnp.take(self.added[...], jnp.maximum(own, 0), axis=0)
        return jnp.where((own < 0)[..., None], rows, added).astype(self.dtype)


def at_least_float32(x: jax.Array) -> jax.Array:
    """``x`` in float32, or in float64 if it is that."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


class LayerNorm(nnx.Module):
    """Layer normalisation over the last axis, in float32, returned in ``dtype``."""

    def __init__(
        self,
        features: int,
        *,
        eps: float = 1e-5,
        dtype: DTypeLike,
        param_dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        del rngs  # unused; kept so that all layers have the same arguments
        self.eps, self.dtype = eps, dtype
        self.scale = nnx.Param(jnp.ones((features,), param_dtype))
        self.bias = nnx.Param(jnp.zeros((features,), param_dtype))

    def __call__(self, x: jax.Array) -> jax.Array:
        x32 = x.astype(jnp.float32)
        mean = x32.mean(-1, keepdims=True)
        if x.dtype == jnp.float32:
            variance = jnp.square(x32 - mean).mean(-1, keepdims=True)
            y = (x32 - mean) * lax.rsqrt(variance + self.eps)
        else:
            # Both sums in one pass, as in GroupNorm, and two instead of three in the backward pass.
            variance = jnp.square(x32).mean(-1, keepdims=True) - jnp.square(mean)
            gain = lax.rsqrt(jnp.maximum(variance, 0) + self.eps)
            y = x32 * gain - mean * gain
        return (y * self.scale[...] + self.bias[...]).astype(self.dtype)


class GroupNorm(nnx.Module):
    """Group normalisation of [b, h, w, c] over (h, w, c / groups), in float32."""

    def __init__(
        self,
        num_groups: int,
        features: int,
        *,
        eps: float = 1e-5,
        dtype: DTypeLike,
        param_dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        del rngs
        if features % num_groups:
            raise ValueError(
                f"norm_num_groups={num_groups} does not divide {features} channels: "
                "choose block_out_channels that are multiples of norm_num_groups"
            )
        self.num_groups, self.eps, self.dtype = num_groups, eps, dtype
        self.scale = nnx.Param(jnp.ones((features,), param_dtype))
        self.bias = nnx.Param(jnp.zeros((features,), param_dtype))

    def __call__(self, x: jax.Array) -> jax.Array:
        x32 = at_least_float32(x)
        # Reduce over positions first, channel by channel: the long axis is then summed over
        # contiguous rows, and the regrouping touches only [b, c] numbers.
        space = tuple(range(1, x.ndim - 1))
        mean = self._per_group(x32.mean(space))
        if x.dtype == x32.dtype:
            centred = x32 - jnp.expand_dims(mean, space)
            variance = self._per_group(jnp.square(centred).mean(space))
        else:
            # Both sums in one pass. The precision lost in the difference of squares is below the
            # input's rounding to half precision.
            variance = self._per_group(jnp.square(x32).mean(space)) - jnp.square(mean)
            variance = jnp.maximum(variance, 0)
        gain = at_least_float32(self.scale[...]) * lax.rsqrt(variance + self.eps)
        offset = at_least_float32(self.bias[...]) - mean * gain
        y = x32 * jnp.expand_dims(gain, space) + jnp.expand_dims(offset, space)
        return y.astype(self.dtype)

    def _per_group(self, per_channel):
        """[b, c] averaged within each group and broadcast back to [b, c]."""
        b, c = per_channel.shape
        grouped = per_channel.reshape(b, self.num_groups, c // self.num_groups)
        mean = jnp.broadcast_to(grouped.mean(-1, keepdims=True), grouped.shape)
        return mean.reshape(b, c)
