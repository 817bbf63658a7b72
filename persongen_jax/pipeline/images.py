"""Turns noise into images: sizes, initial noise, the sampler's loop, decoding."""

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, PartitionSpec
from jax.typing import ArrayLike

from persongen_jax.diffusion.conditioning import Guidance
from persongen_jax.diffusion.plan import Plan
from persongen_jax.diffusion.samplers import (
    final_latents,
    image_keys,
    init_carry,
    initial_latents,
    predicted_latents,
    sample_steps,
)
from persongen_jax.methods.base import Method
from persongen_jax.models.sdxl.vae import AutoencoderKL, decode_images
from persongen_jax.parallel.sharding import BATCH, batch_sharding, put_array, to_host
from persongen_jax.weights.formats.sdxl.loading import SDXLBase

PREVIEW = 256  # pixels of the longer side
FIRST_PREVIEW = 0.2  # after this part of the steps; before, there is little to see
PREVIEWS_SHARE = 0.08  # of the time, at most, after the first one


def default_size(base: SDXLBase) -> tuple[int, int]:
    """(height, width) in pixels that the UNet was made for."""
    side: Any = base.configs["unet"].get("sample_size")
    pair = isinstance(side, (list, tuple)) and len(side) == 2
    # If the config does not say, diffusers uses SDXL's.
    sides = side if pair else (side or 128,) * 2
    height, width = (side * base.model.vae.vae_scale_factor for side in sides)
    return height, width


def image_size(
    base: SDXLBase, height: int | None, width: int | None, default: tuple[int, int] | None = None
) -> tuple[int, int]:
    """(height, width) in pixels; ValueError unless the VAE supports it.

    Args:
        default: (height, width) where one is None; None: the model's own.
    """
    factor, default = base.model.vae.vae_scale_factor, default or default_size(base)
    height = default[0] if height is None else height
    width = default[1] if width is None else width
    for name, side in (("height", height), ("width", width)):
        if side <= 0 or side % factor:
            raise ValueError(f"{name}={side} is not a positive multiple of {factor}")
    return height, width


def latent_shape(base: SDXLBase, size: tuple[int, int]) -> tuple[int, int, int]:
    """(h, w, c) of the latents of an image of (height, width) pixels."""
    factor = base.model.vae.vae_scale_factor
    return size[0] // factor, size[1] // factor, base.configs["unet"].get("in_channels", 4)


def initial_noise(latents: ArrayLike | None, seed: int, shape: tuple[int, ...]) -> np.ndarray:
    """``latents``, checked; None: [n, h, w, c] standard normal, drawn from the seed."""
    if latents is None:
        draw = jax.vmap(lambda key: jax.random.normal(key, shape[1:], jnp.float32))
        return np.asarray(draw(image_keys(seed, 0, shape[0])))
    if isinstance(latents, (str, bytes)):
        raise ValueError("latents: a text; give an array [n, h / 8, w / 8, 4]")
    latents = np.asarray(latents, np.float32)
    if latents.shape != shape:
        raise ValueError(f"latents have shape {latents.shape}; {shape} is needed")
    return latents


def sample(
    module: nnx.Module,
    method: Any,
    mesh: Mesh,
    plan: Plan,
    noise: jax.Array | np.ndarray,
    guidance: Guidance,
    keys: jax.Array | np.ndarray,
    settings: Sequence[ArrayLike],
    progress: Callable[[int], object] | None = None,
    watch: Callable[[jax.Array], object] | None = None,
) -> jax.Array:
    """Latents [b, h, w, c]: the whole loop in one call, or in about twenty that are told of.

    Args:
        module: the networks that ``denoise`` runs (denoiser_module).
        method: its ``denoise`` runs; None: the base alone.
        noise: [b, h, w, c] standard normal. keys: [b], for stochastic samplers.
        settings: (guidance_scale, guidance_rescale, merge_step).
        progress: called with the number of steps done since the last call. What it raises ends the
            loop.
        watch: called at times with the latents that are predicted by then.
    """
    if isinstance(method, Method) and type(method).denoise is Method.denoise:
        method = None  # it runs the UNet as the base does: one program for all such methods
    graphdef, state = nnx.split(module)
    first = put_array(initial_latents(plan, noise), batch_sharding(mesh))
    carry, keys = init_carry(plan, first), put_array(keys, batch_sharding(mesh))
    n = plan.num_steps
    stride = n if progress is None and watch is None else max(1, n // 20)
    began, spent, last = time.perf_counter(), 0.0, 0.0
    for start in range(0, n, stride):
        stop = min(start + stride, n)
        scalars = (*settings, start, stop)
        with jax.set_mesh(mesh):
            carry = sample_steps(method, graphdef, state, plan, carry, guidance, keys, scalars)
        if progress is not None or watch is not None:
            jax.block_until_ready(carry)
        if progress is not None:
            progress(stop - start)
        if watch is not None and FIRST_PREVIEW * n <= stop < n and affordable(began, spent, last):
            before = time.perf_counter()
            watch(predicted_latents(carry))
            last = time.perf_counter() - before
            spent += last
    return final_latents(carry)


def affordable(began: float, spent: float, next_one: float) -> bool:
    """Whether one more preview keeps their share of the time; the first always does.

    Args:
        began: on the clock of time.perf_counter. spent, next_one: seconds.
    """
    return not spent or spent + next_one <= PREVIEWS_SHARE * (time.perf_counter() - began)


def preview(vae: AutoencoderKL, mesh: Mesh, latents: jax.Array) -> np.ndarray:
    """Latents [b, h, w, c] to small images, uint8 [b, H, W, 3], of about PREVIEW pixels a side.

    The means of neighbouring cells are decoded, which costs the square of their number less.
    """
    height, width = latents.shape[1:3]
    cells = max(1, round(max(height, width) * vae.vae_scale_factor / PREVIEW))
    shape = (latents.shape[0], -(-height // cells), -(-width // cells), latents.shape[3])
    small = latents if cells == 1 else jax.image.resize(latents, shape, "linear")
    return (to_host(decode(vae, mesh, small)) * 255).round().astype(np.uint8)


def decode(
    vae: AutoencoderKL, mesh: Mesh, latents: jax.Array, tile_size: int | None = None
) -> jax.Array:
    """Latents [b, h, w, c] to images [b, H, W, 3] float32 in 0..1; ``tile_size`` in pixels."""
    graphdef, state = nnx.split(vae)
    tile = None if tile_size is None else tile_size // vae.vae_scale_factor
    return _decode(graphdef, mesh, tile, state, latents)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _decode(graphdef, mesh, tile, state, latents):
    def decode(state, latents):
        vae = nnx.merge(graphdef, state)
        return decode_images(vae, latents, tiling=tile is not None, tile_size=tile)

    # decode_images processes its images one by one: each device processes its own.
    specs = (PartitionSpec(), BATCH)
    return jax.shard_map(decode, mesh=mesh, in_specs=specs, out_specs=BATCH, check_vma=False)(
        state, latents
    )


def to_pil(images: np.ndarray) -> list:
    """Float [n, h, w, 3] in 0..1 to 8-bit PIL images."""
    from PIL import Image

    return [Image.fromarray(image) for image in (images * 255).round().astype(np.uint8)]
