"""PuLID's encoders of a face: from a recogniser's vector and EVA-CLIP's features to tokens.

Guo et al., arXiv 2404.16022. Version 1 maps the vector to five tokens and each of EVA-CLIP's five
feature maps to one; version 1.1 lets 32 learned queries gather them, map after map. Both end in the
width of the text states. Zeros give the tokens of "no face", which are not zero. Module paths
mirror the published files' keys after ``id_adapter.``.
"""

from typing import Any, Unpack

import jax
import jax.numpy as jnp
from flax import nnx

from persongen_jax.models.encoders.resampler import PerceiverAttention, apply, feed_forward
from persongen_jax.models.layers import LayerNorm, LayerOptions, Linear

MAPS = 5  # feature maps of EVA-CLIP
ID_TOKENS = 5  # that the vector becomes
LAYERS_PER_MAP = 2  # of IDFormer


class LeakyReLU(nnx.Module):
    """Slope 0.01; it has a number of its own in the keys of a sequence."""

    def __call__(self, x: jax.Array) -> jax.Array:
        return jax.nn.leaky_relu(x, 0.01)


def mapping(
    in_features: int, hidden_features: int, out_features: int, kw: LayerOptions
) -> nnx.List:
    """Three linear layers with norms and LeakyReLU between them; keys 0, 1, 3, 4, 6."""
    return nnx.List(
        [
            Linear(in_features, hidden_features, **kw),
            LayerNorm(hidden_features, **kw),
            LeakyReLU(),
            Linear(hidden_features, hidden_features, **kw),
            LayerNorm(hidden_features, **kw),
            LeakyReLU(),
            Linear(hidden_features, out_features, **kw),
        ]
    )


class IDEncoder(nnx.Module):
    """Version 1: ten tokens of one face.

    Args:
        id_features: of the face vector (1280); in_features: of a feature map (1024).
        features: of the tokens (2048). num_id_tokens: that the vector becomes.
    """

    version = "v1"

    def __init__(
        self,
        id_features: int,
        in_features: int,
        features: int,
        *,
        num_id_tokens: int = ID_TOKENS,
        **kw: Unpack[LayerOptions],
    ):
        self.num_id_tokens = num_id_tokens
        self.body = mapping(id_features, in_features, num_id_tokens * features, kw)
        for k in range(MAPS):
            setattr(self, f"mapping_{k}", mapping(in_features, in_features, features, kw))
            setattr(self, f"mapping_patch_{k}", mapping(in_features, in_features, features, kw))

    @property
    def num_tokens(self) -> int:
        return self.num_id_tokens + MAPS

    def __call__(self, vector: jax.Array, maps: tuple[jax.Array, ...]) -> jax.Array:
        """Vectors [b, id_features], five maps [b, 1 + patches, in_features]: [b, 10, features]."""
        tokens = apply(self.body, vector).reshape(len(vector), self.num_id_tokens, -1)
        found = [tokens]
        for k, states in enumerate(maps):
            whole = apply(getattr(self, f"mapping_{k}"), states[:, :1])
            patches = apply(getattr(self, f"mapping_patch_{k}"), states[:, 1:])
            found.append(whole + patches.mean(axis=1, keepdims=True))
        return jnp.concatenate(found, axis=1)


class IDFormer(nnx.Module):
    """Version 1.1: as many tokens as there are queries, of any number of pictures of a face.

    Args:
        id_features: of the face vector (1280); in_features: of a feature map (1024).
        features: of the queries (1024); out_features: of the tokens (2048).
        heads, head_dim: of the attention (16 of 64); hidden_features: of the feed-forward layers.
    """

    version = "v1.1"

    def __init__(
        self,
        id_features: int,
        in_features: int,
        features: int,
        out_features: int,
        *,
        heads: int,
        head_dim: int = 64,
        hidden_features: int | None = None,
        num_id_tokens: int = ID_TOKENS,
        num_tokens: int = 32,
        **kw: Unpack[LayerOptions],
    ):
        hidden = 4 * features if hidden_features is None else hidden_features
        self.num_id_tokens, self.dtype = num_id_tokens, kw["dtype"]
        key, scale = kw["rngs"].params, features**-0.5

        def drawn(*shape):
            return nnx.Param((scale * jax.random.normal(key(), shape)).astype(kw["param_dtype"]))

        self.latents, self.proj_out = drawn(1, num_tokens, features), drawn(features, out_features)
        self.id_embedding_mapping = mapping(id_features, in_features, num_id_tokens * features, kw)
        for k in range(MAPS):
            setattr(self, f"mapping_{k}", mapping(in_features, in_features, features, kw))
        self.layers: nnx.List[nnx.List[Any]] = nnx.List(
            [
                nnx.List(
                    [
                        PerceiverAttention(features, heads=heads, head_dim=head_dim, **kw),
                        feed_forward(features, hidden, kw),
                    ]
                )
                for _ in range(MAPS * LAYERS_PER_MAP)
            ]
        )

    @property
    def num_tokens(self) -> int:
        return self.latents.shape[1]

    def __call__(
        self, vectors: jax.Array, maps: tuple[jax.Array, ...], mask: jax.Array | None = None
    ) -> jax.Array:
        """One face's pictures to its tokens.

        Args:
            vectors: [b, r, id_features], of r pictures.
            maps: five of [b, r, 1 + patches, in_features].
            mask: [b, r] bool, which of the pictures there are, at least one; None: all.

        Returns:
            [b, num_tokens, out_features].
        """
        b, r, _ = vectors.shape
        own = apply(self.id_embedding_mapping, vectors).reshape(b, r * self.num_id_tokens, -1)
        latents = jnp.repeat(self.latents[...].astype(self.dtype), b, axis=0)
        n = latents.shape[1]
        latents = jnp.concatenate([latents, own], axis=1)
        for k, states in enumerate(maps):
            places = states.shape[2]
            seen = apply(getattr(self, f"mapping_{k}"), states).reshape(b, r * places, -1)
            context = jnp.concatenate([own, seen], axis=1)
            there = None if mask is None else self._there(mask, places, n)
            for attend, layers in self.layers[k * LAYERS_PER_MAP : (k + 1) * LAYERS_PER_MAP]:
                latents = attend(latents, context, there) + latents
                latents = apply(layers, latents) + latents
        return latents[:, :n] @ self.proj_out[...].astype(self.dtype)

    def _there(self, mask, places, queries):
        """[b, keys] of the attention: the context's vectors and places, then the latents'."""
        vectors = jnp.repeat(mask, self.num_id_tokens, axis=1)
        always = jnp.ones((len(mask), queries), bool)
        return jnp.concatenate([vectors, jnp.repeat(mask, places, axis=1), always, vectors], axis=1)
