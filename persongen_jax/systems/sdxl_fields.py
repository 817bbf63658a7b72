"""How SDXL's VAE encodes the target image, for the feature cache."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from data_pipeline.examples.fields import Encoding


def encode_moments(model: Any, pixel_values: jax.Array) -> dict[str, jax.Array]:
    """Maps images [b, h, w, 3] to {"moments": [b, h/8, w/8, 2c]}: mean and logvar."""
    return {"moments": jnp.concatenate(model.vae.encode(pixel_values), axis=-1)}


def image_encoding() -> Encoding:
    """The moments of the posterior of a target, one table per (width, height)."""
    return Encoding(
        kind="moments",
        weights=("vae/encoder/", "vae/quant_conv/"),
        encode=encode_moments,
        precision="vae_dtype",
        suffix=lambda shape: f"-{shape[1]}x{shape[0]}",
        view=_vae_only,
    )


def _vae_only(model):
    view = nnx.Module()
    view.vae = model.vae
    return view
