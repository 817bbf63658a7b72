"""Writes diffusers-format folders that diffusers and transformers open."""

import json
import os
from pathlib import Path

import jax
import numpy as np
from flax import nnx

from data_pipeline.files import write_text
from persongen_jax.weights.files.safetensors_file import write_safetensors
from persongen_jax.weights.loader import (
    parameter_leaves,
    to_torch_layout,
    to_torch_shape,
    torch_key,
)


def save_module(
    module: nnx.Module, folder: str | os.PathLike, config: dict, *, file_name: str
) -> None:
    """Write ``folder/config.json`` and ``folder/<file_name>``.

    Tensors are written in their stored dtype, one at a time; reading the file back gives bit-equal
    ones. ``file_name`` is ``diffusion_pytorch_model.safetensors`` for diffusers' models,
    ``model.safetensors`` for transformers'.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", config)
    entries = [
        (torch_key(path), to_torch_shape(path, leaf.shape), leaf.dtype, _reader(path, leaf))
        for path, leaf in sorted(parameter_leaves(module).items(), key=lambda i: torch_key(i[0]))
    ]
    write_safetensors(folder / file_name, entries, {"format": "pt"})


def _reader(path, leaf):
    def read():
        array = to_torch_layout(path, np.asarray(jax.device_get(leaf)))
        return np.ascontiguousarray(array).reshape(array.shape)  # it makes a scalar [1]

    return read


def write_json(path: str | os.PathLike, content: dict | list) -> None:
    """Write a JSON file atomically: a reader sees the old one or the new one."""
    write_text(path, json.dumps(content, indent=2, sort_keys=True) + "\n")
