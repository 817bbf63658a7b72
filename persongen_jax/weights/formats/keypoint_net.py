"""KeypointNet folders: config.json and model.safetensors."""

import os
from pathlib import Path

import jax.numpy as jnp

from persongen_jax.models.faces.keypoint_net import KeypointNet
from persongen_jax.models.layers import UnusedRngs
from persongen_jax.weights.errors import MissingFile
from persongen_jax.weights.files.directory import open_component, read_config
from persongen_jax.weights.loader import load_module
from persongen_jax.weights.saver import save_module


def load_keypoint_net(folder: str | os.PathLike) -> KeypointNet:
    """Open a folder that :func:`save_keypoint_net` wrote.

    Raises:
        MissingFile: no such folder, or one without its files.
        WeightsError: any other fault of its files.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise MissingFile(
            f"{folder}: no such directory; a KeypointNet's holds config.json and model.safetensors"
        )
    config = read_config(folder)
    with open_component(folder) as source:
        return load_module(
            lambda: KeypointNet(config, dtype=jnp.float32, rngs=UnusedRngs()), source
        )


def save_keypoint_net(net: KeypointNet, folder: str | os.PathLike) -> None:
    """Write ``folder``, which is created if necessary."""
    config = {**net.config, "widths": list(net.config["widths"])}
    save_module(net, folder, config, file_name="model.safetensors")
