"""SFace (Zhong et al., arXiv 2205.12010): a face recogniser on MobileNetV1 (arXiv 1704.04861), as
OpenCV's model zoo publishes it (2021dec). Arrays are NHWC.
"""

from typing import Unpack

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from ml_collections import FrozenConfigDict

from persongen_jax.models.faces.depthwise import DepthwiseConv
from persongen_jax.models.faces.iresnet import BatchNorm, PReLU
from persongen_jax.models.layers import Conv, LayerOptions, Linear

WIDTHS = (32, 64, 128, 128, 256, 256, *(512,) * 6, 1024, 1024)  # after conv_1 to conv_14
HALVING = (3, 5, 7, 13)  # numbers of the layers that halve the side
LAYER_EPSILON, LAST_EPSILON = 1e-3, 2e-5
SIZE, DIM = 112, 128
OWN_SCALE = 127.5 / 128  # it divides by 128 what others divide by 127.5


class ConvNorm(nnx.Module):
    """A convolution, batch normalisation and PReLU."""

    def __init__(self, conv: Conv | DepthwiseConv, features: int, **kw: Unpack[LayerOptions]):
        self.conv = conv
        self.norm = BatchNorm(features, epsilon=LAYER_EPSILON, **kw)
        self.prelu = PReLU(features, **kw)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.prelu(self.norm(self.conv(x)))


class SFace(nnx.Module):
    """Maps aligned RGB faces [b, 112, 112, 3] in [-1, 1] to raw embeddings, float32 [b, 128].

    The faces are aligned by data_pipeline.faces.align and scaled by iresnet.normalise_faces.

    Args:
        widths: channels after conv_1 to conv_n; size: side of the crops; dim: of an embedding.
        dtype: of the computation; param_dtype: of the stored weights.

    Attributes:
        config: ``input_size`` and ``embedding_dim``, as an IResNet's.
    """

    def __init__(
        self,
        widths: tuple[int, ...] = WIDTHS,
        size: int = SIZE,
        dim: int = DIM,
        *,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        kw: LayerOptions = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.config = FrozenConfigDict({"input_size": size, "embedding_dim": dim})
        first = Conv(3, widths[0], 3, padding=1, use_bias=False, **kw)
        self.conv_1 = ConvNorm(first, widths[0], **kw)
        layers, side = [], size
        for number, (before, after) in enumerate(zip(widths, widths[1:], strict=False), 2):
            strides = 2 if number in HALVING else 1
            side = -(-side // strides)
            depthwise = DepthwiseConv(before, strides=strides, use_bias=False, **kw)
            pointwise = Conv(before, after, 1, use_bias=False, **kw)
            layers += [ConvNorm(depthwise, before, **kw), ConvNorm(pointwise, after, **kw)]
        self.layers = nnx.List(layers)
        self.norm = BatchNorm(widths[-1], epsilon=LAST_EPSILON, **kw)
        self.fc = Linear(widths[-1] * side**2, dim, **kw)
        self.features = BatchNorm(dim, epsilon=LAST_EPSILON, **kw)

    def __call__(self, images: jax.Array) -> jax.Array:
        x = self.conv_1(images * OWN_SCALE)
        for layer in self.layers:
            x = layer(x)
        # fc's rows are in (c, h, w) order in the file.
        x = self.norm(x).transpose(0, 3, 1, 2).reshape(len(x), -1)
        return self.features(self.fc(x)).astype(jnp.float32)
