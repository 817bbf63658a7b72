"""What methods share that read references by networks of their own."""

import jax
import jax.numpy as jnp
from flax import nnx

from data_pipeline.pictures.transforms import CLIP_MEAN, CLIP_STD
from persongen_jax.methods.base import Model


class FaceReader:
    """Part of a method whose references are faces that a recogniser, ``face_encoder``, reads."""

    image_tower = "face_encoder"

    def reference_size(self, model: Model) -> int:
        return model.face_encoder.config["input_size"]

    def encode_references(self, model: Model, id_pixel_values: jax.Array) -> jax.Array:
        """Faces [b, r, s, s, 3], normalised for CLIP, to embeddings [b, r, d] of length 1."""
        b, r = id_pixel_values.shape[:2]
        images = id_pixel_values.reshape(b * r, *id_pixel_values.shape[2:])
        embeds = model.face_encoder(2 * (images * CLIP_STD + CLIP_MEAN) - 1)
        embeds = embeds / jnp.linalg.norm(embeds, axis=-1, keepdims=True)
        return embeds.reshape(b, r, -1)


def is_abstract(model: Model) -> bool:
    """Whether only shapes are made, so that no file has been read."""
    return isinstance(jax.tree.leaves(nnx.state(model.unet))[0], jax.core.Tracer)
