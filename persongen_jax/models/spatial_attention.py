"""Attention over the positions of a picture, as the VAE and DDPM's UNet have it."""

from flax import nnx

from persongen_jax.models.attention import attention
from persongen_jax.models.layers import GroupNorm, Linear


class SpatialAttention(nnx.Module):
    """Attention over all positions of [b, h, w, c], added to the input.

    Args:
        features: c.
        heads: a divisor of c.
        groups: of the group normalisation in front; None for no normalisation.
        eps: of that normalisation.
        output_scale_factor: the sum of input and attention is divided by it.
    """

    def __init__(self, features, *, heads, groups, eps, output_scale_factor=1.0, **kw):
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

    def __call__(self, x):
        b, h, w, c = x.shape
        tokens = x if self.group_norm is None else self.group_norm(x)
        tokens = tokens.reshape(b, h * w, c)
        q, k, v = (
            project(tokens).reshape(b, h * w, self.heads, c // self.heads)
            for project in (self.to_q, self.to_k, self.to_v)
        )
        x = x + self.to_out[0](attention(q, k, v).reshape(b, h, w, c))
        return x if self.output_scale_factor == 1.0 else x / self.output_scale_factor
