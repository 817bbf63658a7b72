"""FaceNet (Schroff et al., arXiv 1503.03832) on Inception-ResNet-v1 (arXiv 1602.07261, figure 10).

As facenet-pytorch publishes it, trained on VGGFace2. Module paths mirror its keys; NHWC.
"""

from collections.abc import Sequence
from typing import Unpack

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from ml_collections import FrozenConfigDict

from persongen_jax.models.faces.iresnet import BatchNorm
from persongen_jax.models.judges.inception import UnitOptions
from persongen_jax.models.judges.units import (
    EPSILON,
    WIDTH,
    ConvUnit,
    check_width,
    max_pool,
    narrowed,
)
from persongen_jax.models.layers import Conv, LayerOptions, Linear

SIZE, DIM, CHANNELS = 160, 512, 1792
SMALLEST = 80  # pixels that the network needs along a side
OWN_SCALE = 127.5 / 128  # it divides by 128 what others divide by 127.5
ROW, COLUMN, SHORT_ROW, SHORT_COLUMN = (1, 7), (7, 1), (1, 3), (3, 1)


class ResidualBlock(nnx.Module):
    """Branches, joined by a convolution whose result is scaled and added: [b, h, w, c] to the same.

    Args:
        channels: c. branches: of each the units, as (channels in and out, kernel size).
        scale: of what is added. relu: False leaves the sum as it is.
    """

    def __init__(
        self,
        channels: int,
        branches: Sequence[Sequence[tuple[tuple[int, int], int | tuple[int, int]]]],
        scale: float,
        relu: bool = True,
        **kw: Unpack[UnitOptions],
    ):
        self.scale, self.relu, self.count = scale, relu, len(branches)
        # The file has a branch of one unit as that unit, and others as lists.
        self.branch0 = ConvUnit(*branches[0][0], **kw)
        for i, branch in enumerate(branches[1:], 1):
            setattr(self, f"branch{i}", nnx.List([ConvUnit(*unit, **kw) for unit in branch]))
        own: LayerOptions = {
            "dtype": kw["dtype"],
            "param_dtype": kw["param_dtype"],
            "rngs": kw["rngs"],
        }
        joined = sum(branch[-1][0][1] for branch in branches)
        inputs, outputs = (narrowed(size, kw["width"]) for size in (joined, channels))
        self.conv2d = Conv(inputs, outputs, 1, **own)

    def __call__(self, x: jax.Array) -> jax.Array:
        parts = [self.branch0(x)]
        for i in range(1, self.count):
            parts.append(in_turn(getattr(self, f"branch{i}"), x))
        x = self.conv2d(jnp.concatenate(parts, axis=-1)) * self.scale + x
        return jax.nn.relu(x) if self.relu else x


def in_turn(layers: nnx.List, x: jax.Array) -> jax.Array:
    """``x`` through all layers."""
    for layer in layers:
        x = layer(x)
    return x


class Reduction(nnx.Module):
    """Halves the side: branches that end with a stride of 2, and a max pool.

    Args:
        branches: as of ResidualBlock; the last unit of each has the stride.
        first_is_unit: whether the file has the first branch as a single unit.
    """

    def __init__(
        self,
        branches: Sequence[Sequence[tuple[tuple[int, int], int]]],
        first_is_unit: bool = False,
        **kw: Unpack[UnitOptions],
    ):
        self.count = len(branches)
        for i, branch in enumerate(branches):
            units = [ConvUnit(*unit, **kw) for unit in branch[:-1]]
            units.append(ConvUnit(*branch[-1], strides=2, **kw))
            alone = first_is_unit and i == 0
            setattr(self, f"branch{i}", units[0] if alone else nnx.List(units))

    def __call__(self, x: jax.Array) -> jax.Array:
        branches = (getattr(self, f"branch{i}") for i in range(self.count))
        parts = [b(x) if isinstance(b, ConvUnit) else in_turn(b, x) for b in branches]
        return jnp.concatenate([*parts, max_pool(x)], axis=-1)


class FaceNet(nnx.Module):
    """Maps RGB faces [b, 160, 160, 3] in [-1, 1] to raw embeddings, float32 [b, 512].

    Args:
        width: channels of the first convolution, 32 as published; fewer narrow all others alike.
        dtype: of the computation; param_dtype: of the stored weights.

    Attributes:
        config: ``input_size``, ``embedding_dim`` and ``crop``: "box", since it was trained on
            boxes of faces, and not on aligned faces.
    """

    def __init__(
        self,
        width: int = WIDTH,
        *,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_width(width)
        dim = narrowed(DIM, width)
        self.config = FrozenConfigDict({"input_size": SIZE, "embedding_dim": dim, "crop": "box"})
        own: LayerOptions = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        kw: UnitOptions = {**own, "width": width}

        def block35():
            first, side = ((256, 32), 1), ((32, 32), 3)
            return ResidualBlock(256, [[first], [first, side], [first, side, side]], 0.17, **kw)

        def block17():
            first, inner = ((896, 128), 1), (128, 128)
            branches = [[first], [first, (inner, ROW), (inner, COLUMN)]]
            return ResidualBlock(896, branches, 0.10, **kw)

        def block8(scale, relu=True):
            first, inner = ((CHANNELS, 192), 1), (192, 192)
            branches = [[first], [first, (inner, SHORT_ROW), (inner, SHORT_COLUMN)]]
            return ResidualBlock(CHANNELS, branches, scale, relu, **kw)

        self.conv2d_1a = ConvUnit((3, 32), 3, strides=2, **kw)
        self.conv2d_2a = ConvUnit((32, 32), 3, padding=0, **kw)
        self.conv2d_2b = ConvUnit((32, 64), 3, **kw)
        self.conv2d_3b = ConvUnit((64, 80), **kw)
        self.conv2d_4a = ConvUnit((80, 192), 3, padding=0, **kw)
        self.conv2d_4b = ConvUnit((192, 256), 3, strides=2, **kw)
        self.repeat_1 = nnx.List([block35() for _ in range(5)])
        inner = [((256, 192), 1), ((192, 192), 3), ((192, 256), 3)]
        self.mixed_6a = Reduction([[((256, 384), 3)], inner], first_is_unit=True, **kw)
        self.repeat_2 = nnx.List([block17() for _ in range(10)])
        first, side = ((896, 256), 1), ((256, 256), 3)
        branches = [[first, ((256, 384), 3)], [first, side], [first, side, side]]
        self.mixed_7a = Reduction(branches, **kw)
        self.repeat_3 = nnx.List([block8(0.20) for _ in range(5)])
        self.block8 = block8(1.0, relu=False)
        self.last_linear = Linear(narrowed(CHANNELS, width), dim, use_bias=False, **own)
        self.last_bn = BatchNorm(dim, epsilon=EPSILON, **own)

    def __call__(self, images: jax.Array) -> jax.Array:
        if images.ndim != 4 or images.shape[3] != 3 or min(images.shape[1:3]) < SMALLEST:
            raise ValueError(
                f"images have shape {images.shape}: give [b, {SIZE}, {SIZE}, 3], and sides of at "
                f"least {SMALLEST} pixels"
            )
        x = self.conv2d_2b(self.conv2d_2a(self.conv2d_1a(images * OWN_SCALE)))
        x = self.conv2d_4b(self.conv2d_4a(self.conv2d_3b(max_pool(x))))
        x = self.mixed_6a(in_turn(self.repeat_1, x))
        x = self.mixed_7a(in_turn(self.repeat_2, x))
        x = self.block8(in_turn(self.repeat_3, x))
        return self.last_bn(self.last_linear(x.mean((1, 2)))).astype(jnp.float32)
