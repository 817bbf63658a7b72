"""What Inception networks are made of: a convolution with its norm and ReLU, and pools; NHWC."""

from typing import Unpack

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from persongen_jax.models.faces.iresnet import BatchNorm
from persongen_jax.models.layers import Conv, LayerOptions

EPSILON = 1e-3  # of the norms, as TensorFlow's
WIDTH = 32  # channels of the published networks' first convolution


class ConvUnit(nnx.Module):
    """Convolution without bias, batch normalisation and ReLU, [b, h, w, in] to [b, h', w', out].

    Args:
        sizes: channels in and out of the published network.
        kernel_size: side of a square, or (height, width).
        padding: zeros on every side; None: as many as keep the size where ``strides`` is 1, else 0.
        width: channels of the network's first convolution; all others, except the three of an
            image, are narrowed by ``width / 32``.
    """

    def __init__(
        self,
        sizes: tuple[int, int],
        kernel_size: int | tuple[int, int] = 1,
        *,
        strides: int = 1,
        padding: int | None = None,
        width: int = WIDTH,
        **kw: Unpack[LayerOptions],
    ):
        sides = (kernel_size,) * 2 if isinstance(kernel_size, int) else kernel_size
        pads = [side // 2 if padding is None and strides == 1 else padding or 0 for side in sides]
        inputs, outputs = (narrowed(size, width) for size in sizes)
        self.conv = Conv(
            inputs,
            outputs,
            sides,
            strides=strides,
            padding=tuple((pad, pad) for pad in pads),
            use_bias=False,
            **kw,
        )
        self.bn = BatchNorm(outputs, epsilon=EPSILON, **kw)

    def __call__(self, x: jax.Array) -> jax.Array:
        return jax.nn.relu(self.bn(self.conv(x)))


def narrowed(channels: int, width: int) -> int:
    """``channels`` of the published network in one whose first convolution has ``width``."""
    return channels if channels == 3 else channels * width // WIDTH


def check_width(width: int) -> None:
    """ValueError unless every number of channels can be narrowed to ``width`` / 32."""
    if width < 2 or width % 2:
        raise ValueError(f"width={width}: give an even number of channels; published is {WIDTH}")


def max_pool(x: jax.Array, size: int = 3, strides: int = 2, padding: int = 0) -> jax.Array:
    """The largest of ``size`` x ``size`` cells, as torch's MaxPool2d."""
    pads = [(0, 0), (padding, padding), (padding, padding), (0, 0)]
    window, step = (1, size, size, 1), (1, strides, strides, 1)
    return lax.reduce_window(x, -jnp.inf, lax.max, window, step, pads)


def mean_pool(x: jax.Array) -> jax.Array:
    """The mean of 3 x 3 cells at each cell, of those inside of the image alone."""
    pads = [(0, 0), (1, 1), (1, 1), (0, 0)]

    def total(x):
        return lax.reduce_window(x, 0.0, lax.add, (1, 3, 3, 1), (1, 1, 1, 1), pads)

    return total(x) / total(jnp.ones((1, *x.shape[1:3], 1), x.dtype))
