"""CLIP directories of transformers: the image tower on its own."""

from pathlib import Path

import jax.numpy as jnp
from flax import nnx

from persongen_jax.models.clip import CLIPVisionModel
from persongen_jax.models.layers import UnusedRngs
from persongen_jax.weights.directory import open_component, read_config
from persongen_jax.weights.errors import MissingFile
from persongen_jax.weights.keys import normalise_clip_vision
from persongen_jax.weights.loader import load_module


def load_vision_tower(folder, *, dtype=jnp.float32, param_dtype=None, shardings=None):
    """Open the image tower of a CLIP directory (a full CLIPModel's, or a vision model's).

    Returns:
        (tower without projection, the projection's kernel [d, p] or None).

    Raises:
        MissingFile: no such directory; the message says what to get.
        WeightsError: any other fault of its files.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise MissingFile(
            f"{folder}: no such directory. The ID encoder starts from a CLIP image tower; give "
            "--config.id_encoder=DIR, a transformers folder such as openai/clip-vit-large-patch14"
        )
    config = read_config(folder)
    with open_component(folder) as source:
        source = normalise_clip_vision(source)
        projects = "visual_projection.weight" in source
        tower = load_module(
            lambda: CLIPVisionModel(
                config,
                with_projection=projects,
                dtype=dtype,
                param_dtype=dtype if param_dtype is None else param_dtype,
                rngs=UnusedRngs(),
            ),
            source,
            shardings=shardings,
        )
    projection = None
    if projects:
        projection = tower.visual_projection.kernel.get_value()
        tower.visual_projection = nnx.data(None)
    return tower, projection
