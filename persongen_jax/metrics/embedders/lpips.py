"""LPIPS between all images of a set, each of which goes through the network once if memory allows.

The distance is a weighted sum of squared differences of features, and so follows from products of
features (|a - b|² = |a|² + |b|² - 2 ab), of which a matrix product makes all at once.
"""

import functools
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from persongen_jax.weights.formats.judges.lpips import load_lpips

BLOCK = 8  # images at once
MEMORY = 1 << 30  # bytes of features that are kept; others are computed again


class PerceptualDistance:
    """LPIPS of a folder or file, see ``load_lpips``.

    Attributes:
        net: "alex" or "vgg".
        networks: its weights, one nnx.State.

    Raises:
        WeightsError: nothing there, or not LPIPS.
    """

    def __init__(self, path: str | Path):
        net = load_lpips(path)
        self.net = net.config["net"]
        self._net = nnx.split(net)
        self.networks = (self._net[1],)

    def pairs(self, images: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
        """The distance of every pair, [n, n] float64.

        Args:
            images: RGB [h, w, 3] of one size each, uint8, or floats in [-1, 1].
        """
        count = len(images)
        starts = range(0, count, BLOCK)
        table, kept = np.zeros((count, count)), {}
        for i in starts:
            first = self._features(images, i, kept)
            for j in (j for j in starts if j >= i):
                second = first if i == j else self._features(images, j, kept)
                found = np.asarray(_distances(*self._net, first, second), np.float64)
                found = found[: count - i, : count - j]
                table[i : i + BLOCK, j : j + BLOCK] = found
                table[j : j + BLOCK, i : i + BLOCK] = found.T
        np.fill_diagonal(table, 0)
        # Of equal images, rounding leaves a little of either sign.
        return ((table + table.T) / 2).clip(0)

    def _features(self, images, start, kept):
        if start in kept:
            return kept[start]
        which = np.minimum(np.arange(start, start + BLOCK), len(images) - 1).tolist()
        maps = _maps(*self._net, np.stack([_as_float(images[i]) for i in which]))
        if (len(kept) + 1) * sum(each.nbytes for each in maps) <= MEMORY:
            kept[start] = maps
        return maps


def _as_float(image: np.ndarray) -> np.ndarray:
    image = np.asarray(image)
    found = image.astype(np.float32)
    return found / 127.5 - 1 if image.dtype == np.uint8 else found


@functools.partial(jax.jit, static_argnums=0)
def _maps(graphdef, state, images):
    with jax.default_matmul_precision("highest"):
        return nnx.merge(graphdef, state).maps(images)


@functools.partial(jax.jit, static_argnums=0)
def _distances(graphdef, state, first, second):
    """[n, m] of maps of n and of m images, by the network's heads."""
    total = jnp.zeros((len(first[0]), len(second[0])))
    for head, a, b in zip(nnx.merge(graphdef, state).heads, first, second, strict=True):
        weights, cells = head[...].astype(jnp.float32), a.shape[1] * a.shape[2]

        def length(x, weights=weights, cells=cells):
            return (jnp.square(x) @ weights).sum((1, 2)) / cells

        cross = jnp.einsum("nhwc,mhwc->nm", a * weights, b, precision="highest") / cells
        total = total + length(a)[:, None] + length(b) - 2 * cross
    return total
