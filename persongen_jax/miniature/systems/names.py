"""Names: single words that describe a whole face, like names of celebrities in SDXL.

An ID encoder puts one token for a whole face in place of the class word. SDXL understands such
tokens, because its captions named thousands of people; the miniature's captions name nobody, and on
a base without such words five runs of PhotoMaker stayed at chance (none of them with the current
loss weights of configs/mini/photomaker.py). So in most prompts of the base's training a name of a
person from the training set replaces the class word. A name is a vector, not a vocabulary entry:
the mean of CLIP image features of the person's face crops, transformed by a fixed random rotation
and scaled to the length of its neighbours. No ID encoder ever gets the rotation or the names, and
strangers have none.
"""

from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from data_pipeline.prompts import Tokenizers
from persongen_jax.miniature.pool import PICTURES, Pool, cached_array
from persongen_jax.miniature.systems.clip import encode_images, face_crops
from persongen_jax.miniature.unit_scale import measure_scale
from persongen_jax.models.encoders.clip import CLIPTextModel, CLIPVisionModel

SEED = 7
ROWS = 200


def make_names(
    vision: CLIPVisionModel,
    towers: Sequence[CLIPTextModel],
    pool: Pool,
    tokenizers: Tokenizers,
    prompts: list[str],
    folder: Path,
) -> np.ndarray:
    """NumPy [people, sum of the towers' widths] float32.

    Args:
        vision: encodes the face crops.
        towers: the text towers, in the order of concatenation.
        prompts: a few, to measure how large the prompt embeddings are.
        folder: caches the features that ``vision`` finds.
    """
    seen = _mean_features(vision, pool, folder)
    seen = (seen - seen.mean(0)) / seen.std(0)
    widths = [tower.config["hidden_size"] for tower in towers]
    rotation = np.random.default_rng(SEED).standard_normal((sum(widths), seen.shape[1]))
    names = seen @ np.linalg.qr(rotation)[0].T
    ids = np.stack([tokenizers.encode(text) for text in prompts])
    scales = [measure_scale(tower, ids[:, i]) for i, tower in enumerate(towers)]
    return (names / names.std() * np.repeat(scales, widths)).astype(np.float32)


def replace_class_words(embeds: jax.Array, names: jax.Array, places: jax.Array) -> jax.Array:
    """Prompt embeddings [b, n, d] with ``names`` [b, d] at ``places`` [b]; nowhere if -1."""
    here = jnp.arange(embeds.shape[1]) == places[:, None]
    return jnp.where(here[..., None], names[:, None], embeds)


def _mean_features(vision, pool: Pool, folder: Path) -> np.ndarray:
    """[people, width]: the pooled output before its projection, cached on disk."""

    def look_at_all():
        crops = face_crops(pool)
        graphdef, params = nnx.split(vision)
        features = jax.jit(lambda p, x: encode_images(nnx.merge(graphdef, p), x).pooler_output)
        parts = [features(params, crops[i : i + ROWS]) for i in range(0, len(pool), ROWS)]
        return np.concatenate(parts).reshape(-1, PICTURES, parts[0].shape[-1]).mean(1)

    return cached_array(folder / "face_features.npy", look_at_all)
