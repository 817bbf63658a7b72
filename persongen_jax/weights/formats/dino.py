"""Image encoders of DINO and DINOv2: facebookresearch's files, and transformers' folders."""

import os
from pathlib import Path

import jax.numpy as jnp
from jax.typing import DTypeLike

from persongen_jax.models.encoders.dino import DinoViT
from persongen_jax.models.layers import UnusedRngs
from persongen_jax.parallel.sharding import Shardings
from persongen_jax.weights.errors import MissingFile
from persongen_jax.weights.files.directory import open_component, open_file, read_config
from persongen_jax.weights.files.source import TensorSource, closed_on_error
from persongen_jax.weights.loader import load_module
from persongen_jax.weights.recognition.dino import (
    infer_dino_config,
    is_transformers,
    name_dino_tensors,
)
from persongen_jax.weights.recognition.layout import unwrapped

# Added to the number of patches when positions are interpolated; transformers leaves it out.
OFFSET = 0.1


def load_dino(
    path: str | os.PathLike,
    *,
    dtype: DTypeLike = jnp.float32,
    param_dtype: DTypeLike | None = None,
    shardings: Shardings | None = None,
) -> DinoViT:
    """Open an image encoder of any depth and width.

    Args:
        path: facebookresearch's ``.pth`` (needs the convert extra) or ``.safetensors`` with the
            same or transformers' keys; or a folder of transformers' ViTModel or Dinov2Model.
        dtype: of the computation; param_dtype: of the stored weights, by default the same.
        shardings: as ``load_module``'s.

    Raises:
        MissingFile: there is none; the message says what to download.
        WeightsError: any other fault of the file, including KeyMismatch and BadConfig.
    """
    path = Path(path)
    if not path.exists():
        raise MissingFile(
            f"{path}: no such file or directory. DINO-I needs an image encoder: "
            "dino_deitsmall16_pretrain.pth from https://github.com/facebookresearch/dino "
            "(Apache-2.0), or the folder facebook/dino-vits16 of transformers; DINOv2-I "
            "dinov2_vits14_pretrain.pth from https://github.com/facebookresearch/dinov2 "
            "(Apache-2.0)."
        )
    source, config = open_dino(path)
    with source:
        return load_module(
            lambda: DinoViT(
                config,
                dtype=dtype,
                param_dtype=dtype if param_dtype is None else param_dtype,
                rngs=UnusedRngs(),
            ),
            source,
            shardings=shardings,
        )


def open_dino(path: str | os.PathLike) -> tuple[TensorSource, dict]:
    """(the tensors under our names, DinoViT's config); closing the source closes the file.

    Raises:
        WeightsError: not such an encoder, or a fault of the file.
    """
    path = Path(path)
    stated = {}
    if path.is_dir():
        file = open_component(path)
        if (path / "config.json").is_file():
            stated = read_config(path)
    else:
        file = open_file(path)
    with closed_on_error(file):
        inner = unwrapped(file)
        source = name_dino_tensors(inner)
        offset = 0.0 if is_transformers(inner) else OFFSET
        return source, infer_dino_config(source, position_offset=offset, stated=stated)


__all__ = ["OFFSET", "load_dino", "open_dino"]
