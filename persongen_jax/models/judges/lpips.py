"""LPIPS (Zhang et al., arXiv 1801.03924, section 3): the perceptual distance of two images.

Version 0.1 of the authors' package, on AlexNet (Krizhevsky, arXiv 1404.5997) or VGG16 (Simonyan and
Zisserman, arXiv 1409.1556). Arrays are NHWC.
"""

from typing import Unpack

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from ml_collections import FrozenConfigDict

from persongen_jax.models.judges.units import max_pool
from persongen_jax.models.layers import Conv, LayerOptions

SHIFT = np.array([-0.030, -0.088, -0.188], np.float32)
SCALE = np.array([0.458, 0.448, 0.450], np.float32)
EPSILON = 1e-10  # added to the length of a cell's channels
SMALLEST = {"alex": 31, "vgg": 16}  # pixels that a backbone needs along a side

# Of each convolution: its index in torchvision's ``features``, its side, strides and padding, the
# side of the max pool of stride 2 before it (0: none), and whether its ReLU is compared.
LAYERS = {
    "alex": (
        (0, 11, 4, 2, 0, True),
        (3, 5, 1, 2, 3, True),
        (6, 3, 1, 1, 3, True),
        (8, 3, 1, 1, 0, True),
        (10, 3, 1, 1, 0, True),
    ),
    "vgg": (
        (0, 3, 1, 1, 0, False),
        (2, 3, 1, 1, 0, True),
        (5, 3, 1, 1, 2, False),
        (7, 3, 1, 1, 0, True),
        (10, 3, 1, 1, 2, False),
        (12, 3, 1, 1, 0, False),
        (14, 3, 1, 1, 0, True),
        (17, 3, 1, 1, 2, False),
        (19, 3, 1, 1, 0, False),
        (21, 3, 1, 1, 0, True),
        (24, 3, 1, 1, 2, False),
        (26, 3, 1, 1, 0, False),
        (28, 3, 1, 1, 0, True),
    ),
}
WIDTHS = {
    "alex": (64, 192, 384, 256, 256),
    "vgg": (64, 64, 128, 128, *(256,) * 3, *(512,) * 6),
}


class Backbone(nnx.Module):
    """The convolutions of AlexNet or VGG16: images to the five maps that LPIPS compares.

    Args:
        net: "alex" or "vgg".
        widths: channels of every convolution; () for the published ones.

    Attributes:
        convs: in the order of LAYERS.
    """

    def __init__(self, net: str, widths: tuple[int, ...] = (), **kw: Unpack[LayerOptions]):
        if net not in LAYERS:
            raise ValueError(f"LPIPS: there is no net {net!r}; there are {', '.join(LAYERS)}")
        widths = tuple(widths) or WIDTHS[net]
        if len(widths) != len(LAYERS[net]):
            raise ValueError(
                f"LPIPS: widths={widths}: {net} has {len(LAYERS[net])} convolutions, one each"
            )
        self.net = net
        self.convs = nnx.List(
            [
                Conv(before, after, side, strides=strides, padding=padding, **kw)
                for (_, side, strides, padding, *_), before, after in zip(
                    LAYERS[net], (3, *widths), widths, strict=False
                )
            ]
        )

    def __call__(self, x: jax.Array) -> list[jax.Array]:
        """Images by SHIFT and SCALE [b, h, w, 3] to maps [b, h', w', c], after their ReLUs."""
        maps = []
        for conv, (*_, pool, compared) in zip(self.convs, LAYERS[self.net], strict=True):
            x = jax.nn.relu(conv(max_pool(x, pool) if pool else x, infer=True))
            if compared:
                maps.append(x)
        return maps


class LPIPS(nnx.Module):
    """The distance of images [b, h, w, 3] in [-1, 1], float32 [b]; 0 for equal ones.

    Args:
        net: "alex" or "vgg". widths: as Backbone's.
        dtype: of the computation; param_dtype: of the stored weights.

    Attributes:
        config: ``net`` and ``widths``.
        heads: the weights of the channels of each compared map, [c] each.
    """

    def __init__(
        self,
        net: str = "alex",
        widths: tuple[int, ...] = (),
        *,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        kw: LayerOptions = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.backbone = Backbone(net, widths, **kw)
        widths = tuple(widths) or WIDTHS[net]
        self.config = FrozenConfigDict({"net": net, "widths": widths})
        compared = [width for width, layer in zip(widths, LAYERS[net], strict=True) if layer[-1]]
        self.heads = nnx.List([nnx.Param(jnp.ones((width,), param_dtype)) for width in compared])

    def maps(self, images: jax.Array) -> list[jax.Array]:
        """The compared maps, float32 [b, h', w', c], each cell's channels of length 1."""
        least = SMALLEST[self.config["net"]]
        if images.ndim != 4 or images.shape[3] != 3 or min(images.shape[1:3]) < least:
            raise ValueError(
                f"images have shape {images.shape}: give [b, h, w, 3] with sides of at least "
                f"{least} pixels"
            )
        maps = [x.astype(jnp.float32) for x in self.backbone((images - SHIFT) / SCALE)]
        lengths = (jnp.sqrt(jnp.square(x).sum(-1, keepdims=True)) for x in maps)
        return [x / (length + EPSILON) for x, length in zip(maps, lengths, strict=True)]

    def __call__(self, a: jax.Array, b: jax.Array) -> jax.Array:
        total = jnp.zeros(len(a), jnp.float32)
        for head, x, y in zip(self.heads, self.maps(a), self.maps(b), strict=True):
            weights = head[...].astype(jnp.float32)
            total = total + (jnp.square(x - y) @ weights).mean((1, 2))
        return total
