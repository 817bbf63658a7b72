"""What methods share that read references by networks of their own."""

import os
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from ml_collections import ConfigDict

from data_pipeline.examples.fields import Batch, Encoding
from data_pipeline.examples.identity.faces import Faces
from data_pipeline.pictures.transforms import CLIP_MEAN, CLIP_STD
from persongen_jax.methods.base import Model
from persongen_jax.methods.start import Origin, find_origin, image_encoder_of, is_abstract
from persongen_jax.models.layers import LayerOptions, Linear, UnusedRngs
from persongen_jax.models.sdxl.parts import StableDiffusionXL
from persongen_jax.weights.formats.clip import load_vision_tower
from persongen_jax.weights.formats.recognisers import open_recogniser
from persongen_jax.weights.licences import say_terms


class FaceReader:
    """Part of a method whose references are faces that a recogniser, ``face_encoder``, reads."""

    image_tower = "face_encoder"

    def reference_size(self, model: Model) -> int:
        return model.face_encoder.config["input_size"]

    def encode_references(self, model: Model, id_pixel_values: jax.Array) -> jax.Array:
        """Faces [b, r, s, s, 3], normalised for CLIP, to embeddings [b, r, d] of length 1."""
        embeds = raw_embeddings(model, id_pixel_values)
        return embeds / jnp.linalg.norm(embeds, axis=-1, keepdims=True)


def raw_embeddings(model: Model, id_pixel_values: jax.Array) -> jax.Array:
    """Faces [b, r, s, s, 3], normalised for CLIP, to ``face_encoder``'s output, [b, r, d]."""
    b, r = id_pixel_values.shape[:2]
    images = id_pixel_values.reshape(b * r, *id_pixel_values.shape[2:])
    return model.face_encoder(2 * (images * CLIP_STD + CLIP_MEAN) - 1).reshape(b, r, -1)


class AlignedFaceReader(FaceReader):
    """Part of a method that reads a recogniser's output as it is, of aligned faces."""

    def encode_references(self, model: Model, id_pixel_values: jax.Array) -> jax.Array:
        """Aligned faces [b, r, s, s, 3], normalised for CLIP, to raw embeddings [b, r, d]."""
        return raw_embeddings(model, id_pixel_values)

    def faces(self, model: Model, places: bool = False) -> Faces:
        """The field of aligned faces; a call may bring embeddings instead. ``places``: its own."""

        def encode(model, pixels):
            return {"features": raw_embeddings(model, pixels[:, None])[:, 0]}

        encoding = Encoding(
            kind="references",
            weights=("face_encoder/",),
            encode=encode,
            signature=("aligned", "raw"),
            view=StableDiffusionXL.conditioner,
        )
        width = model.face_encoder.config["embedding_dim"]
        if model.face_encoder.config.get("crop") == "box":
            raise ValueError(
                "config.face_encoder is FaceNet, which reads a face by its box, and this method "
                "aligns faces; give ArcFace's file (w600k_r50.onnx, glintr100.onnx) or sface"
            )
        size = model.face_encoder.config["input_size"]
        return Faces(size, encoding, embedding=width, places=places)

    def face_embeds(self, model: Model, batch: Batch) -> jax.Array:
        """Raw embeddings [b, r, d]: the cache's, or the pixels' with those that a call brings."""
        if "id_features" in batch:
            return batch["id_features"]
        embeds = raw_embeddings(model, batch["id_pixel_values"])
        if "id_embeds" not in batch:
            return embeds
        given = batch["id_embeds"].astype(embeds.dtype)
        return jnp.where(batch["id_embeds_mask"][..., None], given, embeds)


def find_run(config: ConfigDict, method: str) -> Origin:
    """``find_origin`` of a method without published files; ValueError if it leads to a file."""
    origin = find_origin(config)
    if origin.file:
        raise ValueError(
            f"config.start_from={config.start_from}: leads to the weight file {origin.file}; "
            f"{method} starts from runs of {method}"
        )
    return origin


def check_face_encoder(config: ConfigDict, method: str) -> None:
    """ValueError if the config names no recogniser."""
    if not config.face_encoder:
        raise ValueError(
            f"config.face_encoder is empty: {method} reads the embeddings of a face recogniser; "
            "give its file (w600k_r50.onnx, glintr100.onnx) or sface, to generate as "
            "--image-encoder, to evaluate as --face-encoder, to load_method as encoder"
        )


def add_face_encoder(model: Model, config: ConfigDict, method: str) -> int:
    """Add ``config.face_encoder``'s network and say its terms; the width of its embeddings."""
    named = config.face_encoder
    recogniser = open_recogniser(named, jnp.dtype(config.dtype))
    model.face_encoder = recogniser.model
    if not is_abstract(model):
        say_terms(f"{method} reads faces by {named}", named, "face", recogniser.licence)
    return model.face_encoder.config["embedding_dim"]


def add_image_encoder(model: Model, config: ConfigDict, method: str, what: str) -> int:
    """Add CLIP's image tower, which reads ``what``, and say its terms; its width.

    It is ``config.id_encoder``'s, by default ``<base>/image_encoder``.
    """
    folder = config.id_encoder or image_encoder_of(config)
    model.image_encoder, _ = load_vision_tower(folder, dtype=jnp.dtype(config.dtype))
    if not is_abstract(model):
        say_terms(f"{method} reads {what} by {folder}", str(folder), "clip")
    return model.image_encoder.config["hidden_size"]


def open_projected_tower(folder: str | os.PathLike, dtype: DTypeLike, reader: str) -> Any:
    """CLIP's image tower with its ``visual_projection``; ValueError, with ``reader``, without."""
    tower, projection = load_vision_tower(folder, dtype=dtype)
    if projection is None:
        raise ValueError(
            f"{folder}: an image tower without visual_projection, which {reader} needs; give "
            "CLIPVisionModelWithProjection's folder"
        )
    kw: LayerOptions = {"dtype": dtype, "param_dtype": dtype, "rngs": UnusedRngs()}
    tower.visual_projection = Linear(*projection.shape, use_bias=False, **kw)
    tower.visual_projection.kernel.set_value(projection)
    return tower


def scale_norms(projections: Iterable, config: ConfigDict) -> None:
    """Multiply the gains of the projections' last normalisation by ``config.id_norm_gain``."""
    for each in projections:
        scale = each.norm.scale
        scale.set_value(scale.get_value() * config.get("id_norm_gain", 1.0))
