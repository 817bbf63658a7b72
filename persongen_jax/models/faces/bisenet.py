"""BiSeNet for parsing faces: which of 19 parts each pixel shows (Yu et al., arXiv 1808.00897).

As zllrunning's face-parsing.PyTorch trained it on CelebAMask-HQ and facexlib runs it: the features
of a ResNet-18's second stage take the place of the paper's spatial path. Module paths mirror the
keys of ``parsing_bisenet.pth``; its two further outputs, for training alone, are left out.
"""

import functools
from typing import Any, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from persongen_jax.models.faces.iresnet import BatchNorm
from persongen_jax.models.layers import Conv, LayerOptions

LABELS = 19
WIDTH = 64  # channels of the published network's first convolution


class ConvNorm(nnx.Module):
    """Convolution without bias, batch normalisation and ReLU, [b, h, w, in] to [b, h, w, out]."""

    def __init__(self, inputs: int, outputs: int, size: int, **kw: Unpack[LayerOptions]):
        self.conv = Conv(inputs, outputs, size, padding=size // 2, use_bias=False, **kw)
        self.bn = BatchNorm(outputs, **kw)

    def __call__(self, x: jax.Array) -> jax.Array:
        return jax.nn.relu(self.bn(self.conv(x)))


class BasicBlock(nnx.Module):
    """ResNet's (arXiv 1512.03385): two convolutions and a skip."""

    def __init__(self, inputs: int, outputs: int, strides: int, **kw: Unpack[LayerOptions]):
        plain: dict[str, Any] = {"padding": 1, "use_bias": False, **kw}
        self.conv1 = Conv(inputs, outputs, 3, strides=strides, **plain)
        self.bn1 = BatchNorm(outputs, **kw)
        self.conv2 = Conv(outputs, outputs, 3, **plain)
        self.bn2 = BatchNorm(outputs, **kw)
        self.downsample: nnx.List | None = nnx.data(None)
        if inputs != outputs or strides > 1:
            narrow = Conv(inputs, outputs, 1, strides=strides, use_bias=False, **kw)
            self.downsample = nnx.List([narrow, BatchNorm(outputs, **kw)])

    def __call__(self, x: jax.Array) -> jax.Array:
        out = self.bn2(self.conv2(jax.nn.relu(self.bn1(self.conv1(x)))))
        if self.downsample is not None:
            conv, norm = self.downsample
            x = norm(conv(x))
        return jax.nn.relu(x + out)


class ResNet18(nnx.Module):
    """Images [b, h, w, 3] to features at 1/8, 1/16 and 1/32 of their sides."""

    def __init__(self, width: int, **kw: Unpack[LayerOptions]):
        self.conv1 = Conv(3, width, 7, strides=2, padding=3, use_bias=False, **kw)
        self.bn1 = BatchNorm(width, **kw)
        widths = [width, width, 2 * width, 4 * width, 8 * width]
        for i in range(1, 5):
            inputs, outputs = widths[i - 1 : i + 1]
            blocks = [
                BasicBlock(inputs, outputs, 1 if i == 1 else 2, **kw),
                BasicBlock(outputs, outputs, 1, **kw),
            ]
            setattr(self, f"layer{i}", nnx.List(blocks))

    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        x = _max_pool(jax.nn.relu(self.bn1(self.conv1(x))))
        found = []
        for i in range(1, 5):
            for block in getattr(self, f"layer{i}"):
                x = block(x)
            found.append(x)
        return found[1], found[2], found[3]


class AttentionRefinement(nnx.Module):
    """Features weighted by channel, by what they are on average."""

    def __init__(self, inputs: int, outputs: int, **kw: Unpack[LayerOptions]):
        self.conv = ConvNorm(inputs, outputs, 3, **kw)
        self.conv_atten = Conv(outputs, outputs, 1, use_bias=False, **kw)
        self.bn_atten = BatchNorm(outputs, **kw)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.conv(x)
        return x * jax.nn.sigmoid(self.bn_atten(self.conv_atten(_mean(x))))


class ContextPath(nnx.Module):
    """Images to the ResNet's features at 1/8, and to those of the context at 1/8."""

    def __init__(self, width: int, **kw: Unpack[LayerOptions]):
        inner = 2 * width
        self.resnet = ResNet18(width, **kw)
        self.arm16 = AttentionRefinement(4 * width, inner, **kw)
        self.arm32 = AttentionRefinement(8 * width, inner, **kw)
        self.conv_head32 = ConvNorm(inner, inner, 3, **kw)
        self.conv_head16 = ConvNorm(inner, inner, 3, **kw)
        self.conv_avg = ConvNorm(8 * width, inner, 1, **kw)

    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        eighth, sixteenth, last = self.resnet(x)
        context = self.conv_head32(_doubled(self.arm32(last) + self.conv_avg(_mean(last))))
        context = self.conv_head16(_doubled(self.arm16(sixteenth) + context))
        return eighth, context


class FeatureFusion(nnx.Module):
    """Both kinds of features as one."""

    def __init__(self, features: int, **kw: Unpack[LayerOptions]):
        self.convblk = ConvNorm(features, features, 1, **kw)
        self.conv1 = Conv(features, features // 4, 1, use_bias=False, **kw)
        self.conv2 = Conv(features // 4, features, 1, use_bias=False, **kw)

    def __call__(self, first: jax.Array, second: jax.Array) -> jax.Array:
        x = self.convblk(jnp.concatenate([first, second], axis=-1))
        weight = self.conv2(jax.nn.relu(self.conv1(_mean(x))))
        return x * jax.nn.sigmoid(weight) + x


class Output(nnx.Module):
    """Features to one logit per label."""

    def __init__(self, features: int, labels: int, **kw: Unpack[LayerOptions]):
        self.conv = ConvNorm(features, features, 3, **kw)
        self.conv_out = Conv(features, labels, 1, use_bias=False, **kw)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.conv_out(self.conv(x))


class BiSeNet(nnx.Module):
    """Maps images to logits of labels.

    Args:
        width: channels of the first convolution, 64; all others in proportion.
    """

    def __init__(self, labels: int = LABELS, *, width: int = WIDTH, **kw: Unpack[LayerOptions]):
        self.cp = ContextPath(width, **kw)
        self.ffm = FeatureFusion(4 * width, **kw)
        self.conv_out = Output(4 * width, labels, **kw)

    def __call__(self, images: jax.Array) -> jax.Array:
        """[b, s, s, 3], normalised by ImageNet's mean and std, to [b, s, s, labels] float32.

        Raises:
            ValueError: a side that 32 does not divide.
        """
        height, width = images.shape[1:3]
        if height % 32 or width % 32:
            raise ValueError(
                f"BiSeNet reads images whose sides are multiples of 32, these are {height} x "
                f"{width}: PuLID's face crops are 512 (config.pulid_crop)"
            )
        logits = self.conv_out(self.ffm(*self.cp(images))).astype(jnp.float32)
        rows, columns = (_between(n // 8, n) for n in (height, width))
        return jnp.einsum("ih,bhwc,jw->bijc", rows, logits, columns)


def _max_pool(x):
    """The largest of 3 x 3 cells at every second one."""
    pads = [(0, 0), (1, 1), (1, 1), (0, 0)]
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), pads)


def _mean(x):
    return x.mean((1, 2), keepdims=True)


def _doubled(x):
    return x.repeat(2, 1).repeat(2, 2)


@functools.cache
def _between(length: int, size: int) -> np.ndarray:
    """[size, length]: linear interpolation that keeps both ends in place (align_corners)."""
    places = np.linspace(0, length - 1, size)
    return np.maximum(1 - np.abs(places[:, None] - np.arange(length)), 0).astype(np.float32)
