"""Residual blocks and resampling, shared by the UNet and the VAE. Arrays are NHWC."""

from collections.abc import Sequence
from typing import Literal, Unpack

import jax
import jax.numpy as jnp
from flax import nnx

from persongen_jax.models.layers import Conv, GroupNorm, LayerOptions, Linear
from persongen_jax.models.ops import activation, materialize, upsample_nearest


class ResnetBlock2D(nnx.Module):
    """norm, act, conv, (+ time embedding), norm, act, conv, and a skip connection.

    ``x`` [b, h, w, in_channels], ``temb`` [b, temb_channels] or None, to [b, h, w, out_channels].
    With ``scale_shift`` the time embedding scales and shifts the output of the second norm
    instead. ``resample`` "up" doubles the sides before the first convolution, "down" halves them,
    in the skip connection as well; None keeps them.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        temb_channels: int | None = None,
        groups: int = 32,
        eps: float = 1e-6,
        act: str = "silu",
        output_scale_factor: float = 1.0,
        scale_shift: bool = False,
        resample: Literal["up", "down"] | None = None,
        **kw: Unpack[LayerOptions],
    ):
        self.act = act
        self.scale_shift = scale_shift
        self.resample = resample
        self.output_scale_factor = output_scale_factor
        self.norm1 = GroupNorm(groups, in_channels, eps=eps, **kw)
        self.conv1 = Conv(in_channels, out_channels, 3, padding=1, **kw)
        self.time_emb_proj = nnx.data(None)
        if temb_channels is not None:
            self.time_emb_proj = Linear(temb_channels, out_channels * (1 + scale_shift), **kw)
        self.norm2 = GroupNorm(groups, out_channels, eps=eps, **kw)
        self.conv2 = Conv(out_channels, out_channels, 3, padding=1, **kw)
        self.conv_shortcut = nnx.data(None)
        if in_channels != out_channels:
            self.conv_shortcut = Conv(in_channels, out_channels, 1, **kw)

    def __call__(self, x: jax.Array, temb: jax.Array | None = None) -> jax.Array:
        act = activation(self.act)
        h = act(self.norm1(x))
        if self.resample is not None:
            resample = upsample_nearest if self.resample == "up" else downsample_average
            x, h = resample(x), resample(h)
        h = self.conv1(h)
        if self.time_emb_proj is not None:
            if temb is None:
                raise ValueError("this block reads a time embedding; give temb")
            time = self.time_emb_proj(act(temb))[:, None, None, :]
        if self.scale_shift:
            scale, shift = jnp.split(time, 2, axis=-1)
            h = self.norm2(h) * (1 + scale) + shift
        else:
            h = self.norm2(h if self.time_emb_proj is None else h + time)
        h = self.conv2(act(h))
        skip = x if self.conv_shortcut is None else self.conv_shortcut(x)
        h = skip.astype(h.dtype) + h
        return materialize(h if self.output_scale_factor == 1.0 else h / self.output_scale_factor)


def downsample_average(x: jax.Array) -> jax.Array:
    """[b, h, w, c] to [b, h / 2, w / 2, c]: means of 2x2 pixels."""
    b, h, w, c = x.shape
    return x.reshape(b, h // 2, 2, w // 2, 2, c).mean((2, 4))


class Downsample2D(nnx.Module):
    """Half the side by a convolution of stride 2: [b, h, w, c] to [b, h / 2, w / 2, c].

    ``padding=0`` means the VAE's asymmetric padding, one zero on the right and at the bottom.
    """

    def __init__(self, channels: int, *, padding: int = 1, **kw: Unpack[LayerOptions]):
        sides = ((0, 1), (0, 1)) if padding == 0 else padding
        self.conv = Conv(channels, channels, 3, strides=2, padding=sides, **kw)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.conv(x)


class Upsample2D(nnx.Module):
    """Double the side by repeating pixels, then a convolution: [b, h, w, c] to [b, 2h, 2w, c]."""

    def __init__(self, channels: int, **kw: Unpack[LayerOptions]):
        self.conv = Conv(channels, channels, 3, padding=1, **kw)

    def __call__(self, x: jax.Array, size: Sequence[int] | None = None) -> jax.Array:
        """``size`` (h, w): crop the result to it, for sides that a down block could not halve."""
        h, w = (2 * side for side in x.shape[1:3])
        if self.conv.lora is None and (size is None or tuple(size) == (h, w)):
            return self.conv.upsampled(x)
        x = upsample_nearest(x)
        if size is not None:
            x = x[:, : size[0], : size[1], :]
        return self.conv(x)
