"""YuNet, a face detector of 53 thousand parameters (Wu, Peng, Yu, Machine Intelligence Research
20, 2023), as OpenCV's model zoo publishes it (2023mar). Arrays are NHWC.

What its outputs mean is read by data_pipeline/faces/detectors/yunet_outputs.py.
"""

from typing import Unpack

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from data_pipeline.faces.detectors.yunet_outputs import HEADS, STRIDES
from persongen_jax.models.faces.depthwise import DepthwiseConv
from persongen_jax.models.layers import Conv, LayerOptions
from persongen_jax.models.ops import upsample_nearest

WIDTHS = (16, 32, 64, 64, 64, 64)  # channels after each stage of the backbone
POOLED = (0, 2, 3, 4)  # stages after which the side is halved
CHANNELS = {"cls": 1, "obj": 1, "bbox": 4, "kps": 10}


class Unit(nnx.Module):
    """A 1×1 convolution, a depthwise one and, except in the heads, ReLU."""

    def __init__(
        self, in_features: int, features: int, *, relu: bool = True, **kw: Unpack[LayerOptions]
    ):
        self.relu = relu
        self.conv1 = Conv(in_features, features, 1, **kw)
        self.conv2 = DepthwiseConv(features, **kw)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.conv2(self.conv1(x))
        return jax.nn.relu(x) if self.relu else x


class Stem(nnx.Module):
    """A 3×3 convolution that halves the side, and a unit."""

    def __init__(self, features: int, **kw: Unpack[LayerOptions]):
        self.conv1 = Conv(3, features, 3, strides=2, padding=1, **kw)
        self.conv2 = Unit(features, features, **kw)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.conv2(jax.nn.relu(self.conv1(x)))


class Stage(nnx.Module):
    """Two units."""

    def __init__(self, in_features: int, features: int, **kw: Unpack[LayerOptions]):
        self.conv1 = Unit(in_features, in_features, **kw)
        self.conv2 = Unit(in_features, features, **kw)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.conv2(self.conv1(x))


class YuNet(nnx.Module):
    """Maps RGB canvases [b, h, w, 3] in [0, 255] to scores, boxes and points of three grids.

    h and w are multiples of 32.

    Args:
        widths: channels after each stage; the last four are equal.
        dtype: of the computation; param_dtype: of the stored weights.
    """

    def __init__(
        self,
        widths: tuple[int, ...] = WIDTHS,
        *,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        kw: LayerOptions = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        pairs = zip(widths, widths[1:], strict=False)
        self.backbone = nnx.List([Stem(widths[0], **kw), *(Stage(a, b, **kw) for a, b in pairs)])
        width = widths[-1]
        self.neck = nnx.List([Unit(width, width, **kw) for _ in STRIDES])
        self.heads = nnx.Dict(
            {
                name: nnx.List([Unit(width, CHANNELS[name], relu=False, **kw) for _ in STRIDES])
                for name in HEADS
            }
        )

    def __call__(self, images: jax.Array) -> dict[str, jax.Array]:
        """By "cls_8", "obj_16", …: float32 [b, cells, k]; cls and obj are probabilities."""
        x = images[..., ::-1]  # it was trained on BGR
        levels = []
        for number, stage in enumerate(self.backbone):
            x = stage(x)
            levels.append(x)
            if number in POOLED:
                x = _pool(x)
        # From the coarsest grid to the finest, each adding what the coarser one knows.
        x = self.neck[2](levels[5])
        grids = [x]
        for number, level in ((1, levels[4]), (0, levels[3])):
            x = self.neck[number](level + upsample_nearest(x))
            grids.insert(0, x)
        out = {}
        for name, units in self.heads.items():
            for stride, unit, grid in zip(STRIDES, units, grids, strict=True):
                y = unit(grid).astype(jnp.float32)
                y = y.reshape(len(y), -1, y.shape[-1])
                out[f"{name}_{stride}"] = jax.nn.sigmoid(y) if CHANNELS[name] == 1 else y
        return out


def _pool(x):
    """The maximum of 2×2 neighbours; as two comparisons of halves, since a reduction over such
    windows takes four times as long as all the rest on a CPU."""
    b, h, w, c = x.shape
    x = x.reshape(b, h // 2, 2, w // 2, 2 * c)
    x = jnp.maximum(x[:, :, 0], x[:, :, 1])
    return jnp.maximum(x[..., :c], x[..., c:])
