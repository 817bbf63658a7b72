"""Decodes an image in overlapping tiles, so that the tile and not the image bounds the memory.

The result is close to the whole decode but not equal to it: each tile has its own norm statistics
and attends only to itself. Tiles are placed and blended as in diffusers' AutoencoderKL.
"""

from collections.abc import Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp


class Decoder(Protocol):
    """What an AutoencoderKL has that decoding needs."""

    config: Mapping[str, Any]

    @property
    def vae_scale_factor(self) -> int: ...

    def decode(self, latents: jax.Array) -> jax.Array: ...


def decode_tiled(
    vae: Decoder, latents: jax.Array, tile_size: int | None = None, overlap: int | None = None
) -> jax.Array:
    """``vae.decode`` over overlapping tiles in turn, blended where they overlap.

    Args:
        vae: an AutoencoderKL.
        latents: the autoencoder's own, [b, h, w, latent_channels].
        tile_size: side of a tile in latents; by default that of the config's ``sample_size``.
        overlap: of neighbouring tiles, in latents; a quarter of a tile by default.

    Returns:
        float32 [b, H, W, out_channels], around [-1, 1]. Latents of one tile are decoded whole.

    Raises:
        ValueError: the overlap is not smaller than the tile.
    """
    if tile_size is None:
        sample_size = vae.config["sample_size"]
        sample_size = sample_size if isinstance(sample_size, int) else sample_size[0]
        tile_size = sample_size // vae.vae_scale_factor
    overlap = tile_size // 4 if overlap is None else overlap
    if not 0 <= overlap < tile_size:
        raise ValueError(
            f"overlap={overlap} must be at least 0 and below tile_size={tile_size}: lower it, or "
            "give a larger tile_size (the default follows from the VAE config's sample_size)"
        )
    _, h, w, _ = latents.shape
    if h <= tile_size and w <= tile_size:
        return vae.decode(latents)

    stride = tile_size - overlap
    corners = [[(y, x) for x in range(0, w, stride)] for y in range(0, h, stride)]
    decoded = _decode_tiles(vae, latents, corners, tile_size)
    # Row by row, each tile is blended into the finished edges of those above and to its left.
    done: list[list[jax.Array]] = []
    for i, row in enumerate(corners):
        done.append([])
        for j, corner in enumerate(row):
            tile = decoded[corner]
            if i > 0:
                tile = _blend(done[i - 1][j], tile, overlap * vae.vae_scale_factor, axis=1)
            if j > 0:
                tile = _blend(done[i][j - 1], tile, overlap * vae.vae_scale_factor, axis=2)
            done[i].append(tile)
    keep = stride * vae.vae_scale_factor
    return jnp.concatenate(
        [jnp.concatenate([tile[:, :keep, :keep] for tile in row], axis=2) for row in done], axis=1
    )


def _decode_tiles(vae, latents, corners, tile_size):
    """Decode the tile at every (y, x), one after the other: a dict from corner to tile."""
    by_shape: dict[tuple, list] = {}
    for y, x in (corner for row in corners for corner in row):
        tile = latents[:, y : y + tile_size, x : x + tile_size]
        by_shape.setdefault(tile.shape, []).append(((y, x), tile))
    decoded = {}
    for group in by_shape.values():
        tiles = jax.lax.map(vae.decode, jnp.stack([tile for _, tile in group]))
        decoded.update((corner, tiles[k]) for k, (corner, _) in enumerate(group))
    return decoded


def _blend(before, after, extent, axis):
    """``after`` with its first ``extent`` rows faded in over the last rows of ``before``."""
    extent = min(extent, before.shape[axis], after.shape[axis])
    if extent == 0:
        return after
    shape = [1] * after.ndim
    shape[axis] = extent
    weight = (jnp.arange(extent) / extent).reshape(shape)
    length = before.shape[axis]
    old = jax.lax.slice_in_dim(before, length - extent, length, axis=axis)
    new = jax.lax.slice_in_dim(after, 0, extent, axis=axis)
    rest = jax.lax.slice_in_dim(after, extent, after.shape[axis], axis=axis)
    return jnp.concatenate([old * (1 - weight) + new * weight, rest], axis=axis)
