"""FID's Inception-v3 (Szegedy et al., arXiv 1512.00567, section 6), of TensorFlow's 2015-12-05.

It is not torchvision's: mean pools count only the cells inside of the image, the last block has a
max pool, and there are 1008 classes (Heusel et al., arXiv 1706.08500, section 4, names the file).
Module paths mirror the keys of pytorch-fid's ``pt_inception-2015-12-05-6726825d.pth``; NHWC.
"""

from collections.abc import Callable
from typing import NamedTuple, Unpack

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from ml_collections import FrozenConfigDict

from persongen_jax.models.judges.units import (
    WIDTH,
    ConvUnit,
    check_width,
    max_pool,
    mean_pool,
    narrowed,
)
from persongen_jax.models.layers import LayerOptions, Linear

SIZE, FEATURES, CLASSES = 299, 2048, 1008
SMALLEST = 75  # pixels that the network needs along a side


class UnitOptions(LayerOptions):
    """The arguments of every block."""

    width: int


class InceptionA(nnx.Module):
    """Cells of 1, 5 and twice 3 pixels, and a mean pool; 224 channels and ``pool`` of the pool."""

    def __init__(self, inputs: int, pool: int, **kw: Unpack[UnitOptions]):
        self.branch1x1 = ConvUnit((inputs, 64), **kw)
        self.branch5x5_1 = ConvUnit((inputs, 48), **kw)
        self.branch5x5_2 = ConvUnit((48, 64), 5, **kw)
        self.branch3x3dbl_1 = ConvUnit((inputs, 64), **kw)
        self.branch3x3dbl_2 = ConvUnit((64, 96), 3, **kw)
        self.branch3x3dbl_3 = ConvUnit((96, 96), 3, **kw)
        self.branch_pool = ConvUnit((inputs, pool), **kw)

    def __call__(self, x: jax.Array) -> jax.Array:
        five = self.branch5x5_2(self.branch5x5_1(x))
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        parts = [self.branch1x1(x), five, double, self.branch_pool(mean_pool(x))]
        return jnp.concatenate(parts, axis=-1)


class InceptionB(nnx.Module):
    """Halves the side: a convolution, three, and a max pool; 480 channels more."""

    def __init__(self, inputs: int, **kw: Unpack[UnitOptions]):
        self.branch3x3 = ConvUnit((inputs, 384), 3, strides=2, **kw)
        self.branch3x3dbl_1 = ConvUnit((inputs, 64), **kw)
        self.branch3x3dbl_2 = ConvUnit((64, 96), 3, **kw)
        self.branch3x3dbl_3 = ConvUnit((96, 96), 3, strides=2, **kw)

    def __call__(self, x: jax.Array) -> jax.Array:
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return jnp.concatenate([self.branch3x3(x), double, max_pool(x)], axis=-1)


class InceptionC(nnx.Module):
    """Rows and columns of 7 pixels with ``inner`` channels, and a mean pool; 768 channels."""

    def __init__(self, inner: int, **kw: Unpack[UnitOptions]):
        inputs, row, column = 768, (1, 7), (7, 1)
        self.branch1x1 = ConvUnit((inputs, 192), **kw)
        self.branch7x7_1 = ConvUnit((inputs, inner), **kw)
        self.branch7x7_2 = ConvUnit((inner, inner), row, **kw)
        self.branch7x7_3 = ConvUnit((inner, 192), column, **kw)
        self.branch7x7dbl_1 = ConvUnit((inputs, inner), **kw)
        self.branch7x7dbl_2 = ConvUnit((inner, inner), column, **kw)
        self.branch7x7dbl_3 = ConvUnit((inner, inner), row, **kw)
        self.branch7x7dbl_4 = ConvUnit((inner, inner), column, **kw)
        self.branch7x7dbl_5 = ConvUnit((inner, 192), row, **kw)
        self.branch_pool = ConvUnit((inputs, 192), **kw)

    def __call__(self, x: jax.Array) -> jax.Array:
        seven = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        double = self.branch7x7dbl_5(self.branch7x7dbl_4(double))
        parts = [self.branch1x1(x), seven, double, self.branch_pool(mean_pool(x))]
        return jnp.concatenate(parts, axis=-1)


class InceptionD(nnx.Module):
    """Halves the side: two convolutions, four, and a max pool; 1280 channels of 768."""

    def __init__(self, **kw: Unpack[UnitOptions]):
        self.branch3x3_1 = ConvUnit((768, 192), **kw)
        self.branch3x3_2 = ConvUnit((192, 320), 3, strides=2, **kw)
        self.branch7x7x3_1 = ConvUnit((768, 192), **kw)
        self.branch7x7x3_2 = ConvUnit((192, 192), (1, 7), **kw)
        self.branch7x7x3_3 = ConvUnit((192, 192), (7, 1), **kw)
        self.branch7x7x3_4 = ConvUnit((192, 192), 3, strides=2, **kw)

    def __call__(self, x: jax.Array) -> jax.Array:
        three = self.branch3x3_2(self.branch3x3_1(x))
        seven = self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x)))
        return jnp.concatenate([three, self.branch7x7x3_4(seven), max_pool(x)], axis=-1)


class InceptionE(nnx.Module):
    """Rows next to columns of 3 pixels, and a pool that keeps the size; 2048 channels."""

    def __init__(
        self,
        inputs: int,
        pool: Callable[[jax.Array], jax.Array],
        **kw: Unpack[UnitOptions],
    ):
        self.pool = pool
        self.branch1x1 = ConvUnit((inputs, 320), **kw)
        self.branch3x3_1 = ConvUnit((inputs, 384), **kw)
        self.branch3x3_2a = ConvUnit((384, 384), (1, 3), **kw)
        self.branch3x3_2b = ConvUnit((384, 384), (3, 1), **kw)
        self.branch3x3dbl_1 = ConvUnit((inputs, 448), **kw)
        self.branch3x3dbl_2 = ConvUnit((448, 384), 3, **kw)
        self.branch3x3dbl_3a = ConvUnit((384, 384), (1, 3), **kw)
        self.branch3x3dbl_3b = ConvUnit((384, 384), (3, 1), **kw)
        self.branch_pool = ConvUnit((inputs, 192), **kw)

    def __call__(self, x: jax.Array) -> jax.Array:
        three = self.branch3x3_1(x)
        double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        parts = [
            self.branch1x1(x),
            self.branch3x3_2a(three),
            self.branch3x3_2b(three),
            self.branch3x3dbl_3a(double),
            self.branch3x3dbl_3b(double),
            self.branch_pool(self.pool(x)),
        ]
        return jnp.concatenate(parts, axis=-1)


def largest_of_neighbours(x: jax.Array) -> jax.Array:
    """The largest of 3 x 3 cells at each cell."""
    return max_pool(x, strides=1, padding=1)


class InceptionOutputs(NamedTuple):
    """What FID's tools read, float32; with d = 2048 in the published network.

    features: [b, d], the mean over the last map, which FID and KID compare.
    logits: [b, classes], "logits_unbiased": features · fc without its bias, for Inception Score.
    """

    features: jax.Array
    logits: jax.Array


class InceptionV3(nnx.Module):
    """Maps images of 299 pixels in [-1, 1] to FID's features and Inception Score's logits.

    Args:
        width: channels of the first convolution, 32 as published; fewer narrow all others alike.
        classes: rows of the classifier.
        dtype: of the computation; param_dtype: of the stored weights.

    Raises:
        ValueError: an odd width.
    """

    def __init__(
        self,
        width: int = WIDTH,
        classes: int = CLASSES,
        *,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_width(width)
        self.config = FrozenConfigDict({"width": width, "classes": classes})
        own: LayerOptions = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        kw: UnitOptions = {**own, "width": width}
        self.Conv2d_1a_3x3 = ConvUnit((3, 32), 3, strides=2, **kw)
        self.Conv2d_2a_3x3 = ConvUnit((32, 32), 3, padding=0, **kw)
        self.Conv2d_2b_3x3 = ConvUnit((32, 64), 3, **kw)
        self.Conv2d_3b_1x1 = ConvUnit((64, 80), **kw)
        self.Conv2d_4a_3x3 = ConvUnit((80, 192), 3, padding=0, **kw)
        self.Mixed_5b = InceptionA(192, 32, **kw)
        self.Mixed_5c = InceptionA(256, 64, **kw)
        self.Mixed_5d = InceptionA(288, 64, **kw)
        self.Mixed_6a = InceptionB(288, **kw)
        self.Mixed_6b = InceptionC(128, **kw)
        self.Mixed_6c = InceptionC(160, **kw)
        self.Mixed_6d = InceptionC(160, **kw)
        self.Mixed_6e = InceptionC(192, **kw)
        self.Mixed_7a = InceptionD(**kw)
        self.Mixed_7b = InceptionE(1280, mean_pool, **kw)
        self.Mixed_7c = InceptionE(FEATURES, largest_of_neighbours, **kw)
        self.fc = Linear(narrowed(FEATURES, width), classes, **own)

    def maps(self, images: jax.Array) -> tuple[jax.Array, ...]:
        """The four maps whose means the tools call 64, 192, 768 and 2048, each [b, h, w, c]."""
        if images.ndim != 4 or images.shape[3] != 3 or min(images.shape[1:3]) < SMALLEST:
            raise ValueError(
                f"images have shape {images.shape}: give [b, h, w, 3] with sides of at least "
                f"{SMALLEST} pixels; FID's have {SIZE}"
            )
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(images)))
        first = max_pool(x)
        second = max_pool(self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(first)))
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(second)))
        x = self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))
        third = self.Mixed_6e(self.Mixed_6d(x))
        return first, second, third, self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(third)))

    def __call__(self, images: jax.Array) -> InceptionOutputs:
        """RGB [b, 299, 299, 3] in [-1, 1]; other sizes run, but are no tool's."""
        features = self.maps(images)[-1].astype(jnp.float32).mean((1, 2))
        kernel = self.fc.kernel[...].astype(jnp.float32)
        return InceptionOutputs(features, features @ kernel)
