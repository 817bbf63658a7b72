"""Reads and writes UNet2DModel's folders in diffusers' format."""

import os
from pathlib import Path

import jax.numpy as jnp
from jax.typing import DTypeLike

from persongen_jax.models.ddpm.unet2d import UNet2DModel
from persongen_jax.models.layers import LayerOptions, UnusedRngs
from persongen_jax.weights.files.directory import open_component, read_config
from persongen_jax.weights.keys import normalise_attention
from persongen_jax.weights.loader import load_module
from persongen_jax.weights.saver import save_module

FILE_NAME = "diffusion_pytorch_model.safetensors"


def load_unet2d(
    directory: str | os.PathLike,
    *,
    dtype: DTypeLike = jnp.float32,
    param_dtype: DTypeLike = jnp.float32,
    variant: str | None = None,
) -> UNet2DModel:
    """Open a folder with config.json and weights, or a pipeline's folder that contains ``unet/``.

    Raises:
        WeightsError: a fault in the files. ValueError: a config that is not implemented.
    """
    folder = Path(directory)
    if not (folder / "config.json").is_file() and (folder / "unet").is_dir():
        folder /= "unet"
    config = read_config(folder)
    kw: LayerOptions = {"dtype": dtype, "param_dtype": param_dtype, "rngs": UnusedRngs()}
    with open_component(folder, variant) as source:
        return load_module(lambda: UNet2DModel(config, **kw), normalise_attention(source))


def save_unet2d(model: UNet2DModel, directory: str | os.PathLike) -> None:
    """Write config.json and the weights for diffusers' UNet2DModel."""
    config = {"_class_name": "UNet2DModel", **model.config.to_dict()}
    save_module(model, directory, config, file_name=FILE_NAME)
