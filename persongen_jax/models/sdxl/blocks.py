"""The blocks of the UNet: resnets, each optionally followed by a transformer."""

from collections.abc import Callable
from typing import Any, Unpack

import jax
import jax.numpy as jnp
from flax import nnx

from persongen_jax.models.attention import Streams, Transformer2DModel
from persongen_jax.models.layers import LayerOptions
from persongen_jax.models.resnet import Downsample2D, ResnetBlock2D, Upsample2D


class Block(nnx.Module):
    """What the blocks share: how they call their layers.

    With ``remat`` the backward pass recomputes a layer's activations instead of storing them.
    """

    remat = False

    def run(self, layer: Callable[..., jax.Array], *inputs: Any) -> jax.Array:
        if not self.remat:
            return layer(*inputs)
        return jax.checkpoint(lambda *inputs: layer(*inputs))(*inputs)


class DownBlock(Block):
    """``DownBlock2D`` and ``CrossAttnDownBlock2D``: resnets, optionally each with a transformer."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        num_layers: int,
        resnet: dict[str, Any],
        transformer: dict[str, Any] | None,
        downsample: bool,
        **kw: Unpack[LayerOptions],
    ):
        channels = [in_channels] + [out_channels] * (num_layers - 1)
        self.resnets = nnx.List([ResnetBlock2D(c, out_channels, **resnet, **kw) for c in channels])
        self.attentions = _transformers(out_channels, num_layers, transformer, kw)
        self.downsamplers = nnx.List([Downsample2D(out_channels, **kw)]) if downsample else None

    def __call__(
        self, x: jax.Array, temb: jax.Array, streams: Streams
    ) -> tuple[jax.Array, list[jax.Array]]:
        """[b, h, w, in] to [b, h / 2, w / 2, out], and the list of skips for the up path."""
        outputs = []
        for i, resnet in enumerate(self.resnets):
            x = self.run(resnet, x, temb)
            if self.attentions is not None:
                x = self.run(self.attentions[i], x, streams)
            outputs.append(x)
        if self.downsamplers is not None:
            x = self.downsamplers[0](x)
            outputs.append(x)
        return x, outputs


class MidBlock(Block):
    """``UNetMidBlock2DCrossAttn``: resnet, transformer, resnet.

    Without a transformer ``UNetMidBlock2D`` as a ControlNet has it: one resnet.
    """

    def __init__(
        self,
        channels: int,
        *,
        resnet: dict[str, Any],
        transformer: dict[str, Any] | None,
        **kw: Unpack[LayerOptions],
    ):
        count = 1 if transformer is None else 2
        self.resnets = nnx.List(
            [ResnetBlock2D(channels, channels, **resnet, **kw) for _ in range(count)]
        )
        self.attentions = _transformers(channels, 1, transformer, kw)

    def __call__(self, x: jax.Array, temb: jax.Array, streams: Streams) -> jax.Array:
        x = self.run(self.resnets[0], x, temb)
        if self.attentions is None:
            return x
        x = self.run(self.attentions[0], x, streams)
        return self.run(self.resnets[1], x, temb)


class UpBlock(Block):
    """``UpBlock2D``, ``CrossAttnUpBlock2D``: every resnet also reads a skip of the down path."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        prev_channels: int,
        *,
        num_layers: int,
        resnet: dict[str, Any],
        transformer: dict[str, Any] | None,
        upsample: bool,
        **kw: Unpack[LayerOptions],
    ):
        hidden = [prev_channels] + [out_channels] * (num_layers - 1)
        skips = [out_channels] * (num_layers - 1) + [in_channels]
        self.resnets = nnx.List(
            [
                ResnetBlock2D(c + skip, out_channels, **resnet, **kw)
                for c, skip in zip(hidden, skips, strict=True)
            ]
        )
        self.attentions = _transformers(out_channels, num_layers, transformer, kw)
        self.upsamplers = nnx.List([Upsample2D(out_channels, **kw)]) if upsample else None

    def __call__(
        self, x: jax.Array, skips: list[jax.Array], temb: jax.Array, streams: Streams
    ) -> jax.Array:
        """``skips``: the down path's outputs; this block pops its own off the end."""
        for i, resnet in enumerate(self.resnets):
            x = self.run(resnet, jnp.concatenate([x, skips.pop()], axis=-1), temb)
            if self.attentions is not None:
                x = self.run(self.attentions[i], x, streams)
        if self.upsamplers is not None:
            x = self.upsamplers[0](x, size=skips[-1].shape[1:3])
        return x


def _transformers(channels, num_layers, transformer, kw):
    if transformer is None:
        return None
    return nnx.List([Transformer2DModel(channels, **transformer, **kw) for _ in range(num_layers)])
