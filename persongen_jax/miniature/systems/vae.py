"""The miniature's VAE."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from data_pipeline.examples.fields import Batch
from persongen_jax.miniature import sizes
from persongen_jax.miniature.latents import encode_pool, scaling_factor, with_scaling_factor
from persongen_jax.miniature.pool import Pool
from persongen_jax.miniature.systems.base import PoolSystem, open_network, to_pixels
from persongen_jax.models.sdxl.vae import AutoencoderKL

CROP = 32  # side of the crops in most steps: a quarter of the work and the memory
WHOLE = 0.1  # last fraction of the steps: whole images, so that the norms see final statistics
FACE_WEIGHT = 6.0  # of a pixel in the face box
KL_WEIGHT = 1e-4


class Vae(PoolSystem):
    """The VAE: L1, squared error with more weight on the face, a little KL.

    Examples are crops first, and whole images in the last steps.

    Arrays of an example:
        image: [s, s, 3] uint8.
        face_box: [4] float32, in pixels; it may lie outside a crop.
    """

    model: AutoencoderKL

    @property
    def samples(self) -> tuple[int, ...]:
        return 0, self.config.steps * self.config.batch_size - 1

    def network(self) -> AutoencoderKL:
        vae = AutoencoderKL(sizes.vae_config(), rngs=nnx.Rngs(self.config.seed))
        init_near_linear(vae)
        return vae

    def example(self, rng: np.random.Generator, n: int) -> dict[str, np.ndarray]:
        row = int(rng.integers(len(self.pool)))
        image, box = self.pool.images[row], self.pool.face_box[row].astype(np.float32)
        if n // self.config.batch_size < (1 - WHOLE) * self.config.steps:
            corner = crop_corner(rng, box)
            image, box = crop(image, corner), shift_box(box, corner)
        return {"image": image, "face_box": box}

    def draw(self, key_of: Callable[[int], jax.Array], batch: Batch) -> dict[str, jax.Array]:
        """ "noise" [b, h, w, c], of the latents."""
        b, height, width, _ = batch["image"].shape
        factor = self.model.vae_scale_factor
        shape = (b, height // factor, width // factor, sizes.LATENT_CHANNELS)
        return {"noise": jax.random.normal(key_of(0), shape)}

    def losses(self, model: Any, batch: Batch, draws: dict[str, jax.Array]) -> dict[str, jax.Array]:
        pixels = to_pixels(batch["image"])
        mean, logvar = model.encode(pixels)
        error = model.decode(mean + jnp.exp(0.5 * logvar) * draws["noise"]) - pixels
        weight = 1 + (FACE_WEIGHT - 1) * box_mask(batch["face_box"], pixels.shape[1])
        # In [-1, 1] an error of 0.08 means 28 dB; both terms matter there.
        told = (weight[..., None] * (10 * error**2 + 0.5 * jnp.abs(error))).mean((1, 2, 3))
        kl = 0.5 * (mean**2 + jnp.exp(logvar) - 1 - logvar).mean((1, 2, 3))
        return {"loss": told + KL_WEIGHT * kl, "mse": (error**2).mean((1, 2, 3)), "kl": kl}


def open_vae(work: Path, pool: Pool) -> tuple[AutoencoderKL, np.ndarray]:
    """(the trained VAE with its scaling factor in ``config``, moments of the pool's images)."""
    vae = open_network(work, "vae")
    moments = encode_pool(vae, pool, work / "vae")
    return with_scaling_factor(vae, scaling_factor(moments)), moments


def init_near_linear(vae: AutoencoderKL) -> None:
    """Start as a nearly linear autoencoder, whose latents are not drowned in their own noise.

    Every residual branch starts at zero, every other kernel with unit gain: the linear part of the
    task is learned in the first hundred steps.
    """
    for path, leaf in nnx.to_flat_state(nnx.state(vae, nnx.Param)):
        if path[-1] == "kernel":
            gain = 0.0 if path[-2] == "conv2" else 3**0.5
            leaf.set_value(leaf.get_value() * gain)
    conv: Any = vae.quant_conv
    bias = conv.bias.get_value()
    conv.bias.set_value(bias.at[sizes.LATENT_CHANNELS :].set(-5.0))


# ---- Crops -------------------------------------------------------------------------------------


def crop_corner(rng: np.random.Generator, box: np.ndarray) -> np.ndarray:
    """A crop's (x, y) in whole pixels: half of the crops are around the face, half anywhere."""
    most = sizes.SIDE - CROP
    if rng.random() < 0.5:
        middle = (box[:2] + box[2:]) / 2 + rng.uniform(-6, 6, 2)
        return np.clip(np.round(middle - CROP / 2), 0, most).astype(int)
    return rng.integers(0, most + 1, 2)


def crop(image: np.ndarray, corner: np.ndarray) -> np.ndarray:
    """The piece [CROP, CROP, c] of an image [h, w, c]."""
    x, y = corner
    return image[y : y + CROP, x : x + CROP]


def shift_box(box: np.ndarray, corner: np.ndarray) -> np.ndarray:
    """The box in the crop's coordinates."""
    return box - np.tile(corner, 2).astype(np.float32)


def box_mask(box: jax.Array, side: int) -> jax.Array:
    """[b, 4] pixels to [b, side, side] in {0, 1}: the pixels whose centre is in the box."""
    middle = jnp.arange(side) + 0.5
    columns = (middle >= box[:, :1]) & (middle < box[:, 2:3])
    rows = (middle >= box[:, 1:2]) & (middle < box[:, 3:])
    return (rows[:, :, None] & columns[:, None, :]).astype(jnp.float32)
