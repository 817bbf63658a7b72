"""What PuLID reads of a face: a vector, and five feature maps of a larger crop."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from ml_collections import ConfigDict

from data_pipeline.examples.fields import Batch
from data_pipeline.examples.identity.portraits import OUTSIDE
from data_pipeline.pictures.transforms import CLIP_MEAN, CLIP_STD, IMAGENET_MEAN, IMAGENET_STD
from persongen_jax.methods.base import Model
from persongen_jax.methods.start import image_encoder_of, is_abstract
from persongen_jax.models.encoders.eva_clip import EvaClipVisionModel
from persongen_jax.models.encoders.pulid import MAPS
from persongen_jax.models.faces.bisenet import BiSeNet
from persongen_jax.models.faces.grey_face import face_ellipse, grey_on_white, resize_bicubic
from persongen_jax.models.layers import LayerOptions, Linear, UnusedRngs
from persongen_jax.weights.formats.bisenet import LICENCE, load_bisenet
from persongen_jax.weights.formats.clip import load_vision_tower
from persongen_jax.weights.formats.eva_clip import load_eva_vision
from persongen_jax.weights.licences import say_terms


def add_tower(model: Model, config: ConfigDict) -> tuple[int, int]:
    """Add ``model.image_encoder``; the widths of its image embedding and of its feature maps.

    It is ``config.id_encoder``'s: EVA-CLIP's file, or the folder of a CLIP (default:
    ``<base>/image_encoder``), which published weights cannot read.

    Raises:
        ValueError: an EVA-CLIP of too few blocks, or a CLIP without its projection.
    """
    named, dtype = config.id_encoder or image_encoder_of(config), jnp.dtype(config.dtype)
    if is_abstract(model) and not config.base:  # SDXL's own sizes, and the published tower's
        kw: LayerOptions = {"dtype": dtype, "param_dtype": dtype, "rngs": UnusedRngs()}
        tower: Any = EvaClipVisionModel({}, **kw)
    elif Path(named).is_file():
        tower = load_eva_vision(named, dtype=dtype)
    else:
        tower = _clip_tower(named, dtype)
    if not is_abstract(model):
        kind = "eva-clip" if isinstance(tower, EvaClipVisionModel) else "clip"
        say_terms(f"PuLID reads faces by {named}", str(named), kind)
    model.image_encoder = tower
    if isinstance(tower, EvaClipVisionModel):
        return tower.config["projection_dim"], tower.config["hidden_size"]
    return tower.visual_projection.kernel.shape[1], tower.config["hidden_size"]


def add_parser(model: Model, config: ConfigDict) -> None:
    """Add ``model.face_parser``, if ``config.pulid_face_parser`` names facexlib's file."""
    named = config.pulid_face_parser
    if not named:
        return
    if is_abstract(model) and not Path(named).is_file():
        kw: LayerOptions = {"dtype": jnp.float32, "param_dtype": jnp.float32, "rngs": UnusedRngs()}
        model.face_parser = BiSeNet(**kw)
        return
    model.face_parser = load_bisenet(named)
    if not is_abstract(model):
        say_terms(f"PuLID parses faces by {named}", str(named), "bisenet", LICENCE)


def _clip_tower(folder, dtype) -> Any:
    tower, projection = load_vision_tower(folder, dtype=dtype)
    if projection is None:
        raise ValueError(
            f"{folder}: an image tower without visual_projection, which PuLID's vector needs; give "
            "CLIPVisionModelWithProjection's folder, or EVA-CLIP's file"
        )
    kw: LayerOptions = {"dtype": dtype, "param_dtype": dtype, "rngs": nnx.Rngs(0)}
    tower.visual_projection = Linear(*projection.shape, use_bias=False, **kw)
    tower.visual_projection.kernel.set_value(projection)
    return tower


def face_features(
    model: Model, embeds: jax.Array, batch: Batch
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    """The encoder's inputs: vectors [b, r, d], and five maps [b, r, 1 + patches, e].

    Args:
        embeds: the recogniser's output as it is, [b, r, ...].
        batch: with the arrays of Portraits.
    """
    pixels = batch["portrait_pixel_values"]
    b, r, s, _, _ = pixels.shape
    images = pixels.reshape(b * r, s, s, 3) * CLIP_STD + CLIP_MEAN
    kept = jnp.broadcast_to(jnp.asarray(face_ellipse(s)), (b * r, s, s))
    if getattr(model, "face_parser", None) is not None:
        parts = model.face_parser((images - IMAGENET_MEAN) / IMAGENET_STD).argmax(-1)
        kept = ~jnp.isin(parts, jnp.array(OUTSIDE))
    if "portrait_kept" in batch:
        labelled = batch["portrait_labelled"].reshape(-1, 1, 1)
        kept = jnp.where(labelled, batch["portrait_kept"].reshape(b * r, s, s), kept)
    tower = model.image_encoder
    images = grey_on_white(images, kept)
    seen = resize_bicubic(images, tower.config["image_size"])
    out = tower((seen - CLIP_MEAN) / CLIP_STD)
    whole = out.image_embeds
    whole = whole / jnp.linalg.norm(whole, axis=-1, keepdims=True)
    vectors = jnp.concatenate([embeds, whole.reshape(b, r, -1).astype(embeds.dtype)], axis=-1)
    return vectors, tuple(y.reshape(b, r, *y.shape[1:]) for y in feature_maps(tower, out))


def feature_maps(tower: Any, out: Any) -> tuple[jax.Array, ...]:
    """EVA-CLIP's five; of a CLIP the same shares of its depth, some perhaps twice."""
    if isinstance(tower, EvaClipVisionModel):
        return out.id_hidden_states
    states = out.hidden_states
    blocks = len(states) - 1
    return tuple(states[round(blocks * k / (MAPS + 1))] for k in range(1, MAPS + 1))
