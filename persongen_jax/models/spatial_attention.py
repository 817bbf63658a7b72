"""Attention over the positions of an image, as in the VAE and DDPM's UNet."""

import math
from collections.abc import Sequence
from typing import Unpack

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.typing import DTypeLike

from persongen_jax.models.attention_kernels import attention
from persongen_jax.models.layers import GroupNorm, LayerOptions, Linear
from persongen_jax.models.ops import per_device
from persongen_jax.models.platform import target_platform
from persongen_jax.parallel.sharding import BATCH

# With at least this many positions and at most this head width, a CPU computes head by head.
CPU_BY_HEADS_TOKENS = 256
CPU_BY_HEADS_WIDTH = 64


class SpatialAttention(nnx.Module):
    """Attention over all positions of [b, h, w, c], added to the input.

    Args:
        features: c.
        heads: a divisor of c.
        groups: of the group normalisation before it; None for no normalisation.
        eps: of that normalisation.
        output_scale_factor: the sum of input and attention is divided by it.
    """

    def __init__(
        self,
        features: int,
        *,
        heads: int,
        groups: int | None,
        eps: float,
        output_scale_factor: float = 1.0,
        **kw: Unpack[LayerOptions],
    ):
        if features % heads:
            raise ValueError(f"heads={heads} does not divide {features} channels")
        self.heads = heads
        self.output_scale_factor = output_scale_factor
        self.group_norm = nnx.data(None)
        if groups is not None:
            self.group_norm = GroupNorm(groups, features, eps=eps, **kw)
        self.to_q = Linear(features, features, **kw)
        self.to_k = Linear(features, features, **kw)
        self.to_v = Linear(features, features, **kw)
        self.to_out = nnx.List([Linear(features, features, **kw)])

    def __call__(self, x: jax.Array) -> jax.Array:
        b, h, w, c = x.shape
        tokens = x if self.group_norm is None else self.group_norm(x)
        tokens = tokens.reshape(b, h * w, c)
        q, k, v = (
            project(tokens).reshape(b, h * w, self.heads, c // self.heads)
            for project in (self.to_q, self.to_k, self.to_v)
        )
        x = x + self.to_out[0](attend(q, k, v).reshape(b, h, w, c))
        return x if self.output_scale_factor == 1.0 else x / self.output_scale_factor


def use_heads_on_cpu(shape: Sequence[int], dtype: DTypeLike) -> bool:
    """Whether :func:`attention_by_heads` is faster for q, k and v [b, n, heads, d]."""
    b, n, heads, d = shape
    mesh = jax.sharding.get_abstract_mesh()
    dealt = mesh.empty or bool(mesh.manual_axes) or b % mesh.size == 0
    fits = n >= CPU_BY_HEADS_TOKENS and d <= CPU_BY_HEADS_WIDTH and per_device(b) * heads > 1
    return target_platform() == "cpu" and dealt and fits and dtype == jnp.float32


def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """softmax(q k^T / sqrt(d)) v of [b, n, heads, d] each, by the faster of two implementations."""
    if not use_heads_on_cpu(q.shape, q.dtype):
        return attention(q, k, v)
    # The compiler cannot partition a loop over the batch: say that it is split over devices.
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1 or mesh.manual_axes:
        return attention_by_heads(q, k, v)
    each = (BATCH,) * 3
    return jax.shard_map(attention_by_heads, in_specs=each, out_specs=BATCH, check_vma=False)(
        q, k, v
    )


@jax.custom_vjp
def attention_by_heads(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """softmax(q k^T / sqrt(d)) v of [b, n, heads, d] each, one head of one image at a time.

    The scores of one head stay in the processor's cache, whereas all of them at once are written to
    memory and read again by every step of the softmax. The backward pass recomputes them
    (FlashAttention, arXiv 2205.14135), transposed, because a CPU's products are slow if they sum
    over the rows of an operand. 16 images of 1024 positions, 4 heads of 8, on two cores: 34 ms
    instead of 82 forward, 108 instead of 316 with the gradient.
    """
    return _forward(q, k, v)[0]


def _forward(q, k, v):
    def one_head(qkv):
        q, k, v = qkv
        scores = q @ k.T
        highest = scores.max(-1, keepdims=True)
        weights = jnp.exp(scores - highest)
        total = weights.sum(-1, keepdims=True)
        return weights @ v / total, (highest + jnp.log(total))[:, 0]

    b = q.shape[0]
    scale = 1 / math.sqrt(q.shape[-1])
    out, log_total = lax.map(one_head, (_heads(q * scale), _heads(k), _heads(v)))
    out = _pictures(out, b)
    return out, (q, k, v, out, log_total)


def _backward(kept, gradient):
    def one_head(given):
        q, k, v, gradient, log_total, drift = given
        weights = jnp.exp(k @ q.T - log_total)
        of_scores = weights * (v @ gradient.T - drift)
        return k.T @ of_scores, of_scores @ q, weights @ gradient

    q, k, v, out, log_total = kept
    b = q.shape[0]
    scale = 1 / math.sqrt(q.shape[-1])
    arrays = [_heads(a) for a in (q * scale, k, v, gradient)]
    drift = _heads((gradient * out).sum(-1, keepdims=True))[..., 0]
    dq, dk, dv = lax.map(one_head, (*arrays, log_total, drift))
    # Transposed outside: inside the loop the compiler would make it the slow kind of product again.
    dq = jnp.swapaxes(dq, 1, 2) * scale
    return _pictures(dq, b), _pictures(dk, b), _pictures(dv, b)


attention_by_heads.defvjp(_forward, _backward)


def _heads(x):
    """[b, n, heads, d] to [b * heads, n, d]."""
    b, n, heads, d = x.shape
    return jnp.swapaxes(x, 1, 2).reshape(b * heads, n, d)


def _pictures(x, b: int):
    """The inverse of :func:`_heads`."""
    return jnp.swapaxes(x.reshape(b, -1, *x.shape[1:]), 1, 2)
