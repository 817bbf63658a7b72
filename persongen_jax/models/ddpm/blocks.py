"""The blocks of DDPM's UNet (arXiv 2006.11239, appendix B), one per level. Arrays are NHWC."""

from collections.abc import Callable, Sequence
from typing import Any, Unpack

import jax
import jax.numpy as jnp
from flax import nnx

from persongen_jax.models.layers import LayerOptions
from persongen_jax.models.resnet import Downsample2D, ResnetBlock2D, Upsample2D
from persongen_jax.models.spatial_attention import SpatialAttention

Channels = Sequence[tuple[int, int]]  # (in, out) of each resnet


class Block2D(nnx.Module):
    """Resnets of one level, each optionally followed by attention.

    Args:
        channels: (in, out) of each resnet.
        attention: arguments of SpatialAttention other than its features; None for none.
    """

    def __init__(
        self,
        channels: Channels,
        *,
        resnet: dict[str, Any],
        attention: Callable[[int], dict[str, Any]] | None,
        **kw: Unpack[LayerOptions],
    ):
        self.resnets = nnx.List([ResnetBlock2D(*pair, **resnet, **kw) for pair in channels])
        self.attentions = nnx.data(None)
        if attention is not None:
            self.attentions = nnx.List(
                [SpatialAttention(out, **attention(out), **kw) for _, out in channels]
            )

    def run(self, i: int, x: jax.Array, temb: jax.Array) -> jax.Array:
        x = self.resnets[i](x, temb)
        return x if self.attentions is None else self.attentions[i](x)


class DownBlock2D(Block2D):
    """Resnets, then half the sides: [b, h, w, in] to [b, h / 2, w / 2, out], except in the last."""

    def __init__(
        self,
        channels: Channels,
        *,
        downsample: str | None,
        padding: int,
        resnet: dict[str, Any],
        attention: Callable[[int], dict[str, Any]] | None,
        **kw: Unpack[LayerOptions],
    ):
        super().__init__(channels, resnet=resnet, attention=attention, **kw)
        out = channels[-1][1]
        self.downsamplers: nnx.List[Downsample2D | ResnetBlock2D] | None = nnx.data(None)
        if downsample == "conv":
            self.downsamplers = nnx.List([Downsample2D(out, padding=padding, **kw)])
        elif downsample == "resnet":
            block = ResnetBlock2D(out, out, resample="down", **resnet, **kw)
            self.downsamplers = nnx.List([block])

    def __call__(self, x: jax.Array, temb: jax.Array) -> tuple[jax.Array, list[jax.Array]]:
        """The output, and the list of skips for the up path."""
        outputs = []
        for i in range(len(self.resnets)):
            x = self.run(i, x, temb)
            outputs.append(x)
        if self.downsamplers is not None:
            x = _resampled(self.downsamplers[0], x, temb)
            outputs.append(x)
        return x, outputs


class UpBlock2D(Block2D):
    """Resnets that also read skips of the down path; then double the sides, except in the last."""

    def __init__(
        self,
        channels: Channels,
        *,
        upsample: str | None,
        resnet: dict[str, Any],
        attention: Callable[[int], dict[str, Any]] | None,
        **kw: Unpack[LayerOptions],
    ):
        super().__init__(channels, resnet=resnet, attention=attention, **kw)
        out = channels[-1][1]
        self.upsamplers: nnx.List[Upsample2D | ResnetBlock2D] | None = nnx.data(None)
        if upsample == "conv":
            self.upsamplers = nnx.List([Upsample2D(out, **kw)])
        elif upsample == "resnet":
            self.upsamplers = nnx.List([ResnetBlock2D(out, out, resample="up", **resnet, **kw)])

    def __call__(self, x: jax.Array, skips: list[jax.Array], temb: jax.Array) -> jax.Array:
        """``skips``: the down path's outputs; this block pops its own off the end."""
        for i in range(len(self.resnets)):
            x = self.run(i, jnp.concatenate([x, skips.pop()], axis=-1), temb)
        return x if self.upsamplers is None else _resampled(self.upsamplers[0], x, temb)


def _resampled(layer, x, temb):
    return layer(x, temb) if isinstance(layer, ResnetBlock2D) else layer(x)


class MidBlock2D(nnx.Module):
    """Resnet, attention unless the config omits it, resnet."""

    def __init__(
        self,
        channels: int,
        *,
        resnet: dict[str, Any],
        attention: dict[str, Any] | None,
        **kw: Unpack[LayerOptions],
    ):
        self.resnets = nnx.List(
            [ResnetBlock2D(channels, channels, **resnet, **kw) for _ in range(2)]
        )
        self.attentions = nnx.data(None)
        if attention is not None:
            self.attentions = nnx.List([SpatialAttention(channels, **attention, **kw)])

    def __call__(self, x: jax.Array, temb: jax.Array) -> jax.Array:
        x = self.resnets[0](x, temb)
        if self.attentions is not None:
            x = self.attentions[0](x)
        return self.resnets[1](x, temb)
