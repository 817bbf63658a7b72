"""DINO's and DINOv2's embeddings of images: unit vectors of the class token.

Figures of different networks are never comparable; DreamBooth's is DINO's ViT-S/16.
"""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from data_pipeline.pictures.reading import load_image
from data_pipeline.pictures.transforms import imagenet_preprocess
from persongen_jax.metrics.clip_score import in_batches, unit
from persongen_jax.weights.errors import WeightsError
from persongen_jax.weights.formats.dino import load_dino


class DinoEmbedder:
    """The image encoder of a file or folder, see ``load_dino``.

    Args:
        path: the file or folder.
        version: 1 for DINO, 2 for DINOv2; the other one is refused, since it is another metric.

    Attributes:
        networks: its weights, one nnx.State.
        config: the encoder's, see DinoViT.

    Raises:
        WeightsError: no such file, none of an encoder, or one of the other version.
    """

    def __init__(self, path: str | Path, version: int = 1):
        net = load_dino(path)
        found = 2 if net.config["layer_scale"] else 1
        if found != version:
            names = {1: ("DINO", "dino"), 2: ("DINOv2", "dinov2")}
            raise WeightsError(
                f"{path}: is an encoder of {names[found][0]}, and {names[version][0]} is needed; "
                f"its figures are another metric. Give it as config.{names[found][1]} "
                f"(--{names[found][1]}) to the metric {names[found][1]}_i."
            )
        self.name = str(path)
        self.config, self._net = net.config, nnx.split(net)
        self.networks = (self._net[1],)

    def image_features(self, images: Sequence[Any] | np.ndarray) -> np.ndarray:
        """Images, in any form that load_image accepts, to unit vectors [n, d] float32."""

        def embed(images):
            pixels = np.stack([imagenet_preprocess(load_image(image)) for image in images])
            return _embed(*self._net, pixels)

        return in_batches(embed, images)


@functools.partial(jax.jit, static_argnums=0)
def _embed(graphdef, state, pixels):
    return unit(nnx.merge(graphdef, state)(pixels))
