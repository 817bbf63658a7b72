"""Attention layers and the transformer blocks of the UNet.

The blocks read their conditioning from named token streams; the base model's cross-attention reads
"text".
"""

from typing import Unpack

import jax
import jax.numpy as jnp
from flax import nnx

from persongen_jax.diffusion.conditioning import Streams
from persongen_jax.models.attention_kernels import attention
from persongen_jax.models.layers import Conv, GroupNorm, LayerNorm, LayerOptions, Linear
from persongen_jax.models.ops import geglu, materialize


class MultiHeadAttention(nnx.Module):
    """Multi-head attention from [b, n, query_dim] to a context: its projections."""

    def __init__(
        self,
        query_dim: int,
        *,
        heads: int,
        head_dim: int,
        cross_attention_dim: int | None = None,
        **kw: Unpack[LayerOptions],
    ):
        self.heads = heads
        inner, context_dim = heads * head_dim, cross_attention_dim or query_dim
        self.to_q = Linear(query_dim, inner, use_bias=False, **kw)
        self.to_k = Linear(context_dim, inner, use_bias=False, **kw)
        self.to_v = Linear(context_dim, inner, use_bias=False, **kw)
        self.to_out = nnx.List([Linear(inner, query_dim, **kw)])

    def attend(
        self,
        q: jax.Array,
        context: jax.Array,
        to_k: Linear,
        to_v: Linear,
        mask: jax.Array | None = None,
    ) -> jax.Array:
        """From projected queries ``q`` [b, n, inner] to ``context`` [b, m, d]: [b, n, inner]."""
        return self.attend_projected(q, to_k(context), to_v(context), mask)

    def attend_projected(
        self, q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None = None
    ) -> jax.Array:
        """``q`` [b, n, inner] to keys and values [b, m, inner]: [b, n, inner]."""
        mask = None if mask is None else mask[:, None, None, :]
        q, k, v = (self._split(x) for x in (q, k, v))
        out = attention(q, k, v, mask)
        return out.reshape(*out.shape[:2], -1)

    def _split(self, x):
        return x.reshape(*x.shape[:2], self.heads, -1)


class Attention(MultiHeadAttention):
    """Self-attention."""

    def __call__(self, x: jax.Array) -> jax.Array:
        """[b, n, query_dim] to the same."""
        return self.to_out[0](self.attend(self.to_q(x), x, self.to_k, self.to_v))


class CrossAttention(MultiHeadAttention):
    """Cross-attention of the base model: reads the stream "text"."""

    def __call__(self, x: jax.Array, streams: Streams) -> jax.Array:
        """[b, n, query_dim] to the same."""
        return self.to_out[0](self.attend_text(self.to_q(x), streams))

    def add_to(self, x: jax.Array, norm: LayerNorm, streams: Streams) -> jax.Array:
        """``x`` [b, n, query_dim] plus the layer's output after ``norm``, the skip included."""
        return x + self(norm(x), streams)

    def attend_text(self, q: jax.Array, streams: Streams) -> jax.Array:
        text = streams["text"]
        return self.attend(q, text.tokens, self.to_k, self.to_v, text.mask)


class GEGLU(nnx.Module):
    """``a * gelu(b)`` with (a, b) = proj(x) (arXiv 2002.05202); exact gelu."""

    def __init__(self, in_features: int, out_features: int, **kw: Unpack[LayerOptions]):
        self.proj = Linear(in_features, 2 * out_features, **kw)

    def __call__(self, x: jax.Array) -> jax.Array:
        return geglu(*jnp.split(self.proj(x), 2, axis=-1))


class Identity(nnx.Module):
    """Keeps diffusers' numbering in place of a dropout layer."""

    def __call__(self, x: jax.Array) -> jax.Array:
        return x


class FeedForward(nnx.Module):
    """GEGLU, then linear; ``net.0.proj`` and ``net.2`` in diffusers' keys."""

    def __init__(self, features: int, **kw: Unpack[LayerOptions]):
        self.net = nnx.List(
            [GEGLU(features, 4 * features, **kw), Identity(), Linear(4 * features, features, **kw)]
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        for layer in self.net:
            x = layer(x)
        return x


class BasicTransformerBlock(nnx.Module):
    """Self-attention, cross-attention, feed-forward, each after a norm and with a skip."""

    def __init__(
        self, features: int, *, heads: int, cross_attention_dim: int, **kw: Unpack[LayerOptions]
    ):
        head_dim = features // heads
        self.norm1 = LayerNorm(features, **kw)
        self.attn1 = Attention(features, heads=heads, head_dim=head_dim, **kw)
        self.norm2 = LayerNorm(features, **kw)
        self.attn2 = CrossAttention(
            features, heads=heads, head_dim=head_dim, cross_attention_dim=cross_attention_dim, **kw
        )
        self.norm3 = LayerNorm(features, **kw)
        self.ff = FeedForward(features, **kw)

    def __call__(self, x: jax.Array, streams: Streams) -> jax.Array:
        x = materialize(x + self.attn1(self.norm1(x)))
        x = materialize(self.attn2.add_to(x, self.norm2, streams))
        return materialize(x + self.ff(self.norm3(x)))


class Transformer2DModel(nnx.Module):
    """Transformer blocks over the positions of [b, h, w, c], added to the input.

    The projections around them are linear layers (SDXL) or 1x1 convolutions (SD 1.5); the two
    differ only in how their weights are stored.
    """

    def __init__(
        self,
        features: int,
        *,
        heads: int,
        num_layers: int,
        cross_attention_dim: int,
        groups: int,
        use_linear_projection: bool,
        **kw: Unpack[LayerOptions],
    ):
        if features % heads:
            raise ValueError(
                f"attention_head_dim={heads} (the number of heads, by diffusers' naming) does not "
                f"divide {features} channels: change it or block_out_channels"
            )
        self.use_linear_projection = use_linear_projection

        def projection():
            if use_linear_projection:
                return Linear(features, features, **kw)
            return Conv(features, features, 1, **kw)

        self.norm = GroupNorm(groups, features, eps=1e-6, **kw)
        self.proj_in = projection()
        self.transformer_blocks = nnx.List(
            [
                BasicTransformerBlock(
                    features, heads=heads, cross_attention_dim=cross_attention_dim, **kw
                )
                for _ in range(num_layers)
            ]
        )
        self.proj_out = projection()

    def __call__(self, x: jax.Array, streams: Streams) -> jax.Array:
        b, h, w, c = x.shape
        streams = {name: stream.at_resolution(h, w) for name, stream in streams.items()}
        hidden = self.proj_in(self.norm(x)).reshape(b, h * w, c)
        for block in self.transformer_blocks:
            hidden = block(hidden, streams)
        return x + self.proj_out(hidden.reshape(b, h, w, c))
