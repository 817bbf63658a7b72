"""Similarity to the caption by CLIP: BoLID's L_CLIP (section 5.2)."""

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from data_pipeline.examples.fields import Field
from data_pipeline.examples.targets import CaptionIds
from data_pipeline.pictures.transforms import CLIP_MEAN, CLIP_STD
from persongen_jax.losses.base import Decoded, DecodedLoss
from persongen_jax.losses.pose_readers import resized
from persongen_jax.models.encoders.clip import CLIPTextModel
from persongen_jax.models.encoders.eva_clip import EvaClipVisionModel
from persongen_jax.models.layers import LayerOptions, UnusedRngs
from persongen_jax.weights.formats.clip import load_clip, load_clip_tokenizer
from persongen_jax.weights.licences import say_terms

POSITIONS = "max_position_embeddings"
# EVA02-CLIP-L-14-336's text tower, which the paper's EVA-CLIP may be.
EVA_TEXT: dict[str, Any] = {"hidden_size": 768, "num_hidden_layers": 12}
EVA_TEXT |= {"num_attention_heads": 12, "max_position_embeddings": 77}
EVA_TEXT |= {"intermediate_size": 3072, "projection_dim": 768, "hidden_act": "gelu"}


class Similarity(DecodedLoss):
    """L_CLIP = 1 - cos(CLIP(image), CLIP(caption)), by any CLIP of ``load_clip``."""

    name, net_key = "clip", "loss_clip"
    remedy = "compares by it: give a whole CLIP's folder or file"
    reads_condition = True

    def __init__(self, config: ConfigDict, *, abstract: bool = False):
        super().__init__(config, abstract=abstract)
        self.shapes_alone = abstract and not Path(self.net).exists()
        self.tokenizer, self.length = None, EVA_TEXT[POSITIONS]
        if not self.shapes_alone:
            self.tokenizer, self.length = load_clip_tokenizer(self.net)

    def network(self) -> nnx.Module:
        towers: Any = nnx.Module()
        if self.shapes_alone:
            kw: LayerOptions = {
                "dtype": jnp.float32,
                "param_dtype": jnp.float32,
                "rngs": UnusedRngs(),
            }
            towers.vision_model = EvaClipVisionModel({}, **kw)
            towers.text_model = CLIPTextModel(EVA_TEXT, with_projection=True, **kw)
            return towers
        clip = load_clip(self.net)
        if not self.abstract:
            eva = isinstance(clip.vision_model, EvaClipVisionModel)
            said = f"the loss 'clip' compares images and captions by {self.net}"
            say_terms(said, self.net, "eva-clip" if eva else "clip")
        towers.vision_model, towers.text_model = clip.vision_model, clip.text_model
        return towers

    def fields(self, trigger_word: str) -> tuple[Field, ...]:
        encode = functools.partial(encode_caption, self.tokenizer, self.length)
        return (CaptionIds(encode, self.length, trigger_word),)

    def __call__(self, network: Any, decoded: Decoded) -> tuple[jax.Array, jax.Array]:
        size = network.vision_model.config["image_size"]
        seen = network.vision_model(clip_pixels(decoded.images, size)).image_embeds
        said = network.text_model(decoded.batch["caption_ids"]).text_embeds
        said = jax.lax.stop_gradient(said)
        return 1 - cosine(seen, said), jnp.ones(len(seen), bool)


def encode_caption(tokenizer: Any, length: int, text: str) -> np.ndarray:
    """Token ids [length] int32, padded, cut at the tower's length."""
    options = {"padding": "max_length", "truncation": True, "max_length": length}
    return np.array(tokenizer([text], **options)["input_ids"][0], np.int32)


def clip_pixels(images: jax.Array, size: int) -> jax.Array:
    """[b, h, w, 3] in 0..1 as CLIP reads it: short side to ``size``, centre, its colours."""
    _, height, width, _ = images.shape
    short = min(height, width)
    new = (height * size // short, width * size // short)
    images = resized(images, new)
    top, left = (new[0] - size) // 2, (new[1] - size) // 2
    return (images[:, top : top + size, left : left + size] - CLIP_MEAN) / CLIP_STD


def cosine(first: jax.Array, second: jax.Array) -> jax.Array:
    """Of rows [b, d], in float32."""
    first, second = (x.astype(jnp.float32) for x in (first, second))
    lengths = (jnp.sqrt((x**2).sum(-1) + 1e-12) for x in (first, second))
    return (first * second).sum(-1) / jnp.prod(jnp.stack(list(lengths)), axis=0)
