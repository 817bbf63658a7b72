"""LPIPS between all images of a set, each of which goes through the network once if memory allows.

The distance is a weighted sum of squared differences of features, and so follows from products of
features (|a - b|² = |a|² + |b|² - 2 ab), of which a matrix product makes all at once.
"""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from persongen_jax.weights.formats.judges.lpips import load_lpips

BLOCK = 8  # images at once, at most
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
        block = -(-count // -(-count // BLOCK)) if count else BLOCK  # blocks alike, hardly padded
        starts = range(0, count, block)
        table, kept = np.zeros((count, count)), {}
        for i in starts:
            first = self._features(images, i, block, kept)
            for j in (j for j in starts if j >= i):
                second = first if i == j else self._features(images, j, block, kept)
                found = np.asarray(_distances(*self._net, first, second), np.float64)
                found = found[: count - i, : count - j]
                table[i : i + block, j : j + block] = found
                table[j : j + block, i : i + block] = found.T
        np.fill_diagonal(table, 0)
        # Of equal images, rounding leaves a little of either sign.
        return ((table + table.T) / 2).clip(0)

    def _features(self, images, start, block, kept):
        if start in kept:
            return kept[start]
        which = np.minimum(np.arange(start, start + block), len(images) - 1).tolist()
        maps = _maps(*self._net, np.stack([_as_float(images[i]) for i in which]))
        if (len(kept) + 1) * sum(each.nbytes for each in maps.rows) <= MEMORY:
            kept[start] = maps
        return maps


def _as_float(image: np.ndarray) -> np.ndarray:
    image = np.asarray(image)
    found = image.astype(np.float32)
    return found / 127.5 - 1 if image.dtype == np.uint8 else found


class Maps(NamedTuple):
    """What is kept of n images.

    rows: of each compared map [n, h w c], cells' channels of length 1.
    lengths: [n], the sum over the maps of their weighted squares.
    """

    rows: list[jax.Array]
    lengths: jax.Array


@functools.partial(jax.jit, static_argnums=0)
def _maps(graphdef, state, images) -> Maps:
    with jax.default_matmul_precision("highest"):
        net = nnx.merge(graphdef, state)
        maps = net.maps(images)
        squares = (jnp.square(x).mean((1, 2)) for x in maps)
        lengths = [x @ head for x, head in zip(squares, _heads(net), strict=True)]
    return Maps([x.reshape(len(x), -1) for x in maps], jnp.stack(lengths).sum(0))


@functools.partial(jax.jit, static_argnums=0)
def _distances(graphdef, state, first: Maps, second: Maps):
    """[n, m] of n and of m images, by the network's heads."""
    total = first.lengths[:, None] + second.lengths
    heads = _heads(nnx.merge(graphdef, state))
    for head, a, b in zip(heads, first.rows, second.rows, strict=True):
        cells = a.shape[1] // len(head)
        # Rows as they are, and no more axes: only such a product is fast on a CPU.
        weighted = a * jnp.tile(head, cells)
        total = total - 2 / cells * jnp.matmul(weighted, b.T, precision="highest")
    return total


def _heads(net):
    return [head[...].astype(jnp.float32) for head in net.heads]
