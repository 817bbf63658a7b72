"""The pool's images as the VAE's latents, encoded once, and their scale."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from persongen_jax.miniature import sizes
from persongen_jax.miniature.pool import Pool, cached_array
from persongen_jax.models.sdxl.vae import AutoencoderKL

ROWS = 100
MEASURED = 1024  # images that the scaling factor is measured on


def encode_pool(vae: AutoencoderKL, pool: Pool, folder: Path) -> np.ndarray:
    """The posterior's mean and logvar [n, h, w, 2 c] float16, cached on disk."""

    def encode_all():
        graphdef, params = nnx.split(vae)

        @jax.jit
        def encode(params, images):
            moments = nnx.merge(graphdef, params).encode(images.astype(jnp.float32) / 127.5 - 1)
            return jnp.concatenate(moments, axis=-1).astype(jnp.float16)

        parts = (pool.images[i : i + ROWS] for i in range(0, len(pool), ROWS))
        return np.concatenate([encode(params, images) for images in parts])

    return cached_array(folder / "moments.npy", encode_all)


def scaling_factor(moments: np.ndarray) -> float:
    """What brings the latents' standard deviation to LATENT_STD, five digits."""
    rows = np.linspace(0, len(moments) - 1, MEASURED).astype(int)
    means, _ = np.split(moments[rows].astype(np.float32), 2, axis=-1)
    return round(float(sizes.LATENT_STD / np.std(means)), 5)


def with_scaling_factor(vae: AutoencoderKL, factor: float) -> AutoencoderKL:
    """The same weights in a module whose config has this scaling factor."""
    config = {**sizes.vae_config(), "scaling_factor": factor}
    graphdef, _ = nnx.split(nnx.eval_shape(lambda: AutoencoderKL(config, rngs=nnx.Rngs(0))))
    return nnx.merge(graphdef, nnx.state(vae))
