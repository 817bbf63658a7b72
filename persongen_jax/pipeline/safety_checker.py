"""Stable Diffusion's safety checker: which images show something unsafe, as its authors judged.

A CLIP image tower, and fixed embeddings of concepts with a threshold each; what the concepts are
was not published (CompVis/stable-diffusion-safety-checker).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from data_pipeline.pictures.transforms import clip_preprocess
from persongen_jax.models.encoders.clip import CLIPVisionModel
from persongen_jax.models.layers import UnusedRngs
from persongen_jax.weights.errors import BadConfig, KeyMismatch
from persongen_jax.weights.files.directory import open_component, read_config
from persongen_jax.weights.files.source import Renaming
from persongen_jax.weights.keys import normalise_clip_vision
from persongen_jax.weights.loader import load_module

CONCEPTS = ("concept_embeds", "special_care_embeds")
THRESHOLDS = tuple(f"{name}_weights" for name in CONCEPTS)
STRICTER = 0.01  # by which all thresholds fall where a concept of special care is near
BATCH = 4


class SafetyChecker:
    """Calls to it say which images are unsafe.

    Args:
        folder: of StableDiffusionSafetyChecker, in transformers' format.

    Raises:
        MissingFile: no such directory. WeightsError: it is no safety checker's.
    """

    def __init__(self, folder: str | Path):
        config = read_config(folder)
        if "vision_config" not in config:
            raise BadConfig(f"{folder}: its config.json has no vision_config; give the checker's")
        vision = {**config["vision_config"], "projection_dim": config.get("projection_dim", 512)}
        with open_component(Path(folder)) as source:
            missing = [name for name in (*CONCEPTS, *THRESHOLDS) if name not in source]
            if missing:
                raise KeyMismatch(source.describe(), missing=missing)
            concepts, special = (np.asarray(source.read(n), np.float32) for n in CONCEPTS)
            self._limits = [np.asarray(source.read(name), np.float32) for name in THRESHOLDS]
            renaming = Renaming(source)
            for key in source.keys():
                if key in (*CONCEPTS, *THRESHOLDS):
                    renaming.ignore(key)
                else:
                    renaming.add(key.removeprefix("vision_model."), key)
            tower = load_module(
                lambda: CLIPVisionModel(
                    vision,
                    with_projection=True,
                    dtype=jnp.float32,
                    param_dtype=jnp.float32,
                    rngs=UnusedRngs(),
                ),
                normalise_clip_vision(renaming.source()),
            )
        self.image_size = vision.get("image_size", 224)
        self._concepts = [_unit(concepts), _unit(special)]
        graphdef, self._state = nnx.split(tower)
        self._embed = jax.jit(lambda state, pixels: nnx.merge(graphdef, state)(pixels).image_embeds)

    def cosines(self, images: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
        """[n, concepts] and [n, concepts of special care], of uint8 RGB [h, w, 3] each."""
        pixels = np.stack([clip_preprocess(image, self.image_size) for image in images])
        rows = []
        for start in range(0, len(pixels), BATCH):
            part = pixels[start : start + BATCH]
            batch = np.zeros((BATCH, *pixels.shape[1:]), np.float32)
            batch[: len(part)] = part
            rows.append(np.asarray(self._embed(self._state, batch))[: len(part)])
        embeds = _unit(np.concatenate(rows))
        concepts, special = (embeds @ known.T for known in self._concepts)
        return concepts, special

    def __call__(self, images: Sequence[Any]) -> np.ndarray:
        """[n] bool, True for an unsafe one of uint8 RGB [h, w, 3] each."""
        concepts, special = self.cosines(images)
        near = (np.round(special - self._limits[1], 3) > 0).any(1, keepdims=True)
        over = np.round(concepts - self._limits[0] + STRICTER * near, 3) > 0
        return np.any(over, axis=1)


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)
