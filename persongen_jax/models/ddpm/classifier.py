"""A small residual network that classifies attributes; its features compare sets of images."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from persongen_jax.models.layers import Conv, GroupNorm, LayerOptions, Linear
from persongen_jax.models.resnet import Downsample2D, ResnetBlock2D

GROUPS = 8  # of the normalisation


class AttributeClassifier(nnx.Module):
    """Maps images [b, h, w, c] in [-1, 1] to logits [b, K] and features [b, d].

    Args:
        channels: of an image; widths: of the levels, between which the side is halved; d is the
            last; attributes: K.
    """

    def __init__(self, channels: int, attributes: int, widths: Sequence[int], *, rngs: nnx.Rngs):
        kw: LayerOptions = {"dtype": jnp.float32, "param_dtype": jnp.float32, "rngs": rngs}
        self.conv_in = Conv(channels, widths[0], 3, padding=1, **kw)
        self.blocks, self.downsamplers = nnx.List([]), nnx.List([])
        for before, width in zip((widths[0], *widths), widths, strict=False):
            self.blocks.append(ResnetBlock2D(before, width, groups=GROUPS, **kw))
        for width in widths[:-1]:
            self.downsamplers.append(Downsample2D(width, **kw))
        self.norm = GroupNorm(GROUPS, widths[-1], **kw)
        self.head = Linear(widths[-1], attributes, **kw)

    def features(self, pictures: jax.Array) -> jax.Array:
        """[b, d]: the last layer before the head, averaged over the image."""
        x = self.conv_in(pictures)
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i < len(self.downsamplers):
                x = self.downsamplers[i](x)
        return nnx.silu(self.norm(x)).mean((1, 2))

    def __call__(self, pictures: jax.Array) -> tuple[jax.Array, jax.Array]:
        features = self.features(pictures)
        return self.head(features), features
