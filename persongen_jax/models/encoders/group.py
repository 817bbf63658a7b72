"""Tokens of a group of images: one feature of all of them, then several tokens of that.

BoLID conditions on G(f_1, ..., f_r), the features of a person's other images (its eq. 1).
"""

from typing import Unpack

import jax
import jax.numpy as jnp
from flax import nnx

from persongen_jax.models.layers import LayerNorm, LayerOptions, Linear

AGGREGATES = ("mean", "max", "attention")
JOINTS = 12


class Aggregate(nnx.Module):
    """G: features [b, r, d] of which ``mask`` [b, r] are there, to [b, d]; of none it is zero.

    "mean" and "max" go over the images. "attention" adds to each feature what one head of
    self-attention over the group reads, and takes the mean.
    """

    def __init__(self, kind: str, features: int, **kw: Unpack[LayerOptions]):
        self.kind = kind
        if kind == "attention":
            self.to_q = Linear(features, features, use_bias=False, **kw)
            self.to_k = Linear(features, features, use_bias=False, **kw)
            self.to_v = Linear(features, features, use_bias=False, **kw)

    def __call__(self, features: jax.Array, mask: jax.Array) -> jax.Array:
        there, some = mask[..., None], mask.any(1)[:, None]
        if self.kind == "max":
            lowest = jnp.finfo(features.dtype).min
            return jnp.where(some, jnp.where(there, features, lowest).max(1), 0)
        if self.kind == "attention":
            q, k, v = self.to_q(features), self.to_k(features), self.to_v(features)
            scores = jnp.einsum("bqd,bkd->bqk", q, k) / features.shape[-1] ** 0.5
            # Of nothing there is no softmax: attend to everything, and take none of it.
            scores = jnp.where(mask[:, None] | ~some[..., None], scores, -jnp.inf)
            features = features + jnp.einsum("bqk,bkd->bqd", jax.nn.softmax(scores, axis=-1), v)
        total = jnp.where(there, features, 0).sum(1)
        return total / jnp.maximum(mask.sum(1), 1)[:, None]


class GroupTokens(nnx.Module):
    """Embeddings [b, r, in_features] of a group to tokens [b, num_tokens, features].

    Each embedding is reduced, the group aggregated, and that uplifted and normalised.

    Args:
        joints: whether each image also brings joints [b, r, 12, 3], as BoLID's Body-ID encoder
            reads them: (x, y, visible).
    """

    def __init__(
        self,
        in_features: int,
        features: int,
        *,
        reduced: int,
        aggregate: str,
        joints: bool = False,
        num_tokens: int = 4,
        **kw: Unpack[LayerOptions],
    ):
        self.num_tokens = num_tokens
        self.reduce = Linear(in_features, reduced, **kw)
        self.reduce_joints = Linear(3 * JOINTS, reduced, **kw) if joints else nnx.data(None)
        self.aggregate = Aggregate(aggregate, reduced, **kw)
        self.uplift = Linear(reduced, num_tokens * features, **kw)
        self.norm = LayerNorm(features, **kw)

    def __call__(
        self, embeds: jax.Array, mask: jax.Array, joints: jax.Array | None = None
    ) -> jax.Array:
        """``mask`` [b, r]: which images are there; of none the tokens are a zero feature's."""
        reduced = self.reduce(embeds)
        if joints is not None and self.reduce_joints is not None:
            reduced = reduced + self.reduce_joints(joints.reshape(*joints.shape[:2], -1))
        feature = self.aggregate(jax.nn.gelu(reduced, approximate=False), mask)
        return self.norm(self.uplift(feature).reshape(len(feature), self.num_tokens, -1))
