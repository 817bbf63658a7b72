"""Turns an image encoder's features into tokens for cross-attention: IP-Adapter's ``image_proj``
(Ye et al., arXiv 2308.06721, section 3.2.1), in its SDXL variants.

All have the same interface: ``image_proj(features)`` returns [b, n, d], and ``reads`` says what the
features are; FaceID Plus reads two. Module paths mirror the keys of the published files.
"""

from collections.abc import Iterable
from typing import Any, NotRequired, Unpack

import jax
import jax.numpy as jnp
from flax import nnx

from persongen_jax.models.attention_kernels import attention
from persongen_jax.models.layers import LayerNorm, LayerOptions, Linear
from persongen_jax.models.ops import activation


class GELU(nnx.Module):
    """Exact gelu, which has a number of its own in the keys of a sequence."""

    def __call__(self, x: jax.Array) -> jax.Array:
        return activation("gelu")(x)


def apply(layers: Iterable[Any], x: jax.Array) -> jax.Array:
    """Apply the layers in sequence, like PyTorch's Sequential."""
    for layer in layers:
        x = layer(x)
    return x


class ImageProjection(nnx.Module):
    """The base variant: the image's pooled embedding, [b, in], to n tokens."""

    reads = "image_embeds"

    def __init__(
        self, in_features: int, features: int, *, num_tokens: int = 4, **kw: Unpack[LayerOptions]
    ):
        self.num_tokens = num_tokens
        self.proj = Linear(in_features, num_tokens * features, **kw)
        self.norm = LayerNorm(features, **kw)

    @property
    def in_features(self) -> int:
        return self.proj.kernel.shape[0]

    def __call__(self, image_embeds: jax.Array) -> jax.Array:
        """[b, in] to [b, n, features]."""
        tokens = self.proj(image_embeds)
        return self.norm(tokens.reshape(len(tokens), self.num_tokens, -1))


class FaceIDProjection(nnx.Module):
    """The FaceID variant: a recogniser's embedding of length 1, [b, in], to n tokens."""

    reads = "face_embeds"

    def __init__(
        self,
        in_features: int,
        features: int,
        *,
        num_tokens: int = 4,
        hidden_features: int | None = None,
        **kw: Unpack[LayerOptions],
    ):
        hidden = 2 * in_features if hidden_features is None else hidden_features
        self.num_tokens = num_tokens
        self.proj = _two_layers(in_features, hidden, num_tokens * features, kw)
        self.norm = LayerNorm(features, **kw)

    @property
    def in_features(self) -> int:
        return self.proj[0].kernel.shape[0]

    def __call__(self, face_embeds: jax.Array) -> jax.Array:
        """[b, in] to [b, n, features]."""
        tokens = apply(self.proj, face_embeds)
        return self.norm(tokens.reshape(len(tokens), self.num_tokens, -1))


def _two_layers(in_features, hidden_features, out_features, kw) -> nnx.List:
    return nnx.List(
        [
            Linear(in_features, hidden_features, **kw),
            GELU(),
            Linear(hidden_features, out_features, **kw),
        ]
    )


class PerceiverAttention(nnx.Module):
    """Latents attend to features and to themselves (Flamingo, arXiv 2204.14198, section 3.1)."""

    def __init__(self, features: int, *, heads: int, head_dim: int, **kw: Unpack[LayerOptions]):
        self.heads = heads
        inner = heads * head_dim
        self.norm1 = LayerNorm(features, **kw)
        self.norm2 = LayerNorm(features, **kw)
        self.to_q = Linear(features, inner, use_bias=False, **kw)
        self.to_kv = Linear(features, 2 * inner, use_bias=False, **kw)
        self.to_out = Linear(inner, features, use_bias=False, **kw)

    def __call__(
        self, latents: jax.Array, x: jax.Array, mask: jax.Array | None = None
    ) -> jax.Array:
        """latents [b, n, d], x [b, m, d] to [b, n, d].

        Args:
            mask: [b, m] bool, which of x are read, or [b, m + n], and which of the latents; None:
                all.
        """
        x, latents = self.norm1(x), self.norm2(latents)
        if mask is not None:
            rest = x.shape[1] + latents.shape[1] - mask.shape[1]
            mask = jnp.pad(mask, ((0, 0), (0, rest)), constant_values=True)[:, None, None]
        k, v = jnp.split(self.to_kv(jnp.concatenate([x, latents], axis=1)), 2, axis=-1)
        q, k, v = (t.reshape(*t.shape[:2], self.heads, -1) for t in (self.to_q(latents), k, v))
        out = attention(q, k, v, mask)
        return self.to_out(out.reshape(*out.shape[:2], -1))


class PerceiverResampler(nnx.Module):
    """Latents gather what they need from an image's patches, layer by layer.

    Args:
        in_features: e, of a patch.
        features: d, of the latents.
        out_features: of the tokens.
        hidden_features: of the feed-forward layers (4 d).
    """

    def __init__(
        self,
        in_features: int,
        features: int,
        out_features: int,
        *,
        heads: int,
        head_dim: int = 64,
        num_layers: int = 4,
        hidden_features: int | None = None,
        **kw: Unpack[LayerOptions],
    ):
        hidden = 4 * features if hidden_features is None else hidden_features
        self.proj_in = Linear(in_features, features, **kw)
        self.proj_out = Linear(features, out_features, **kw)
        self.norm_out = LayerNorm(out_features, **kw)
        self.layers: nnx.List[nnx.List[Any]] = nnx.List(
            [
                nnx.List(
                    [
                        PerceiverAttention(features, heads=heads, head_dim=head_dim, **kw),
                        feed_forward(features, hidden, kw),
                    ]
                )
                for _ in range(num_layers)
            ]
        )

    def resample(
        self, latents: jax.Array, x: jax.Array, mask: jax.Array | None = None
    ) -> jax.Array:
        """latents [b, n, d] and patches [b, m, e] to [b, n, out_features].

        ``mask``: [b, m], True where a patch is there; None: everywhere.
        """
        x = self.proj_in(x)
        for attend, layers in self.layers:
            latents = attend(latents, x, mask) + latents
            latents = apply(layers, latents) + latents
        return self.norm_out(self.proj_out(latents))


def feed_forward(features: int, hidden_features: int, kw: LayerOptions) -> nnx.List:
    """A norm and two layers without biases, whose keys are 0, 1 and 3."""
    return nnx.List(
        [
            LayerNorm(features, **kw),
            Linear(features, hidden_features, use_bias=False, **kw),
            GELU(),
            Linear(hidden_features, features, use_bias=False, **kw),
        ]
    )


class ResamplerOptions(LayerOptions):
    """The arguments that :class:`Resampler` passes on."""

    heads: int
    head_dim: NotRequired[int]
    num_layers: NotRequired[int]
    hidden_features: NotRequired[int | None]


class Resampler(PerceiverResampler):
    """The plus variant: the patches' hidden states to n tokens, by learned latents."""

    reads = "hidden_states"

    def __init__(
        self,
        in_features: int,
        features: int,
        out_features: int,
        *,
        num_tokens: int = 16,
        **kw: Unpack[ResamplerOptions],
    ):
        super().__init__(in_features, features, out_features, **kw)
        latents = jax.random.normal(kw["rngs"].params(), (1, num_tokens, features)) / features**0.5
        self.latents = nnx.Param(latents.astype(kw["param_dtype"]))
        self.dtype = kw["dtype"]

    @property
    def num_tokens(self) -> int:
        return self.latents.shape[1]

    @property
    def in_features(self) -> int:
        return self.proj_in.kernel.shape[0]

    def __call__(self, hidden_states: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """[b, m, in] to [b, n, out_features]; ``mask`` [b, m] as for :meth:`resample`."""
        latents = self.latents[...].astype(self.dtype)
        return self.resample(jnp.repeat(latents, len(hidden_states), axis=0), hidden_states, mask)


class FaceIDPlusProjection(nnx.Module):
    """FaceID Plus: a recogniser's embedding makes the tokens, which then look at CLIP's patches.

    Args:
        in_features: of the embedding, which has length 1; image_features: of a patch.
        features: of the tokens; heads: of the resampler (features / head_dim, at least one).
        shortcut: version 2: the tokens and ``s_scale`` times what the patches add to them. Version
            1: the latter alone. The files do not tell the versions apart.
    """

    reads = "face_embeds and hidden_states"

    def __init__(
        self,
        in_features: int,
        image_features: int,
        features: int,
        *,
        num_tokens: int = 4,
        hidden_features: int | None = None,
        heads: int | None = None,
        head_dim: int = 64,
        num_layers: int = 4,
        shortcut: bool = True,
        s_scale: float = 1.0,
        **kw: Unpack[LayerOptions],
    ):
        hidden = 2 * in_features if hidden_features is None else hidden_features
        self.num_tokens, self.shortcut, self.s_scale = num_tokens, shortcut, s_scale
        self.proj = _two_layers(in_features, hidden, num_tokens * features, kw)
        self.norm = LayerNorm(features, **kw)
        self.perceiver_resampler = PerceiverResampler(
            image_features,
            features,
            features,
            heads=max(1, features // head_dim) if heads is None else heads,
            head_dim=head_dim,
            num_layers=num_layers,
            **kw,
        )

    @property
    def in_features(self) -> int:
        return self.proj[0].kernel.shape[0]

    def __call__(self, face_embeds: jax.Array, hidden_states: jax.Array) -> jax.Array:
        """[b, in_features] and [b, m, image_features] to [b, n, features]."""
        tokens = apply(self.proj, face_embeds)
        tokens = self.norm(tokens.reshape(len(tokens), self.num_tokens, -1))
        seen = self.perceiver_resampler.resample(tokens, hidden_states)
        return tokens + self.s_scale * seen if self.shortcut else seen
