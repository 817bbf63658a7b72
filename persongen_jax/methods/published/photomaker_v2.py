"""PhotoMaker v2: a recogniser reads the face, CLIP the whole photograph (TencentARC's release).

Version 1 (arXiv 2312.04461) reads a face by CLIP alone. Here each reference gives two tokens, made
of a recogniser's embedding and refined by CLIP's patches (models/encoders/photomaker_v2.py). The
class token appears in the prompt twice per reference, and every copy is fused with a token as in
version 1. How the released weights were trained is not known: what is trained here is version 1's
choice, the fuse module and LoRA, and all that is new.
"""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from ml_collections import ConfigDict

from data_pipeline.examples.conditions import References
from data_pipeline.examples.fields import Batch, Encoding, Field
from persongen_jax.diffusion.conditioning import Conditioning, TokenStream
from persongen_jax.methods.base import Method, Model, Parts, prompt_states, prompts
from persongen_jax.methods.published.photomaker import ATTENTION_LAYERS
from persongen_jax.methods.readers import (
    AlignedFaceReader,
    add_face_encoder,
    check_face_encoder,
)
from persongen_jax.methods.start import find_origin, image_encoder_of, load_remaining, load_start
from persongen_jax.models.encoders.photomaker_v2 import NUM_TOKENS, PhotoMakerV2IDEncoder
from persongen_jax.models.lora import add_lora
from persongen_jax.models.sdxl.parts import StableDiffusionXL
from persongen_jax.weights.formats.clip import load_vision_tower
from persongen_jax.weights.formats.photomaker import read_photomaker

TITLE = "PhotoMaker v2"
PHOTOGRAPHS = "photographs"  # the field of whole photographs


class PhotoMakerV2(AlignedFaceReader, Method):
    """Stacked ID embedding of two tokens per reference in the stream "text", and LoRA."""

    groups: tuple[tuple[str, str], ...] = (
        (r"id_encoder/qformer_perceiver/.*", "projections"),
        (r"id_encoder/fuse_module/.*", "fuse_module"),
        (r"unet/.*/lora/(down|up)", "lora"),
    )

    def attach(self, parts: Parts, config: ConfigDict, rngs: nnx.Rngs) -> None:
        """The recogniser, the ID encoder on CLIP's weights, LoRA on the UNet.

        Reads config.face_encoder (a recogniser's file), id_encoder (a CLIP directory or a
        PhotoMaker file; default: ``<base>/image_encoder``), rank, lora_alpha, dtype, and
        start_from: a v2 file, or a run of this method.

        Raises:
            ValueError: no recogniser, or one of another width than the file's.
            UnsupportedAdapter: a file of version 1.
        """
        model: Model = parts.model
        check_face_encoder(config, TITLE)
        width, sizes = add_face_encoder(model, config, TITLE), _sizes_of(find_origin(config).file)
        wanted = sizes.setdefault("id_features", width)
        if wanted != width:
            raise ValueError(
                f"{config.start_from}: reads face embeddings of width {wanted}, those of "
                f"{config.face_encoder} have {width}; give the recogniser that it was made for, "
                "buffalo_l's w600k_r50.onnx"
            )
        dtype = jnp.dtype(config.dtype)
        tower, _ = load_vision_tower(config.id_encoder or image_encoder_of(config), dtype=dtype)
        towers = model.text_encoder, model.text_encoder_2
        widths = [tower.config["hidden_size"] for tower in towers]
        kw: dict[str, Any] = {**sizes, "dtype": dtype, "rngs": rngs}
        model.id_encoder = PhotoMakerV2IDEncoder(tower, widths, **kw)
        add_lora(model.unet, ATTENTION_LAYERS, config.rank, alpha=config.lora_alpha, rngs=rngs)
        load_remaining(model, load_start(model, config))

    def fields(self, parts: Parts, config: ConfigDict) -> tuple[Field, ...]:
        model: Model = parts.model
        faces, whole = self.faces(model), photographs(model)
        faces.paired = whole.paired = True
        return prompts(parts, config, copies=NUM_TOKENS), faces, whole

    def condition(self, model: Model, batch: Batch) -> Conditioning:
        embeds, pooled = prompt_states(model, batch)
        if "image_features" in batch:
            patches = batch["image_features"]
        else:
            patches = model.id_encoder.patches(batch["image_pixel_values"])
        tokens = model.id_encoder.tokens(patches, self.face_embeds(model, batch))
        mask = jnp.repeat(batch["id_mask"], NUM_TOKENS, axis=1)
        stacked = model.id_encoder.fuse_module.stack(
            embeds, tokens, batch["class_tokens_mask"], mask
        )
        return Conditioning({"text": TokenStream(stacked)}, pooled, batch["time_ids"])


def _sizes_of(file: str) -> dict[str, int]:
    """The sizes that a v2 file shows; {} without a file, and for v1, which loading names."""
    if not file:
        return {}
    with read_photomaker(file) as opened:
        return dict(opened.sizes)


def photographs(model: Model) -> References:
    """The references' whole photographs, of which CLIP's patches are read."""

    def encode(model, pixels):
        return {"features": model.id_encoder.patches(pixels[:, None])[:, 0]}

    encoding = Encoding(
        kind=PHOTOGRAPHS,
        weights=("id_encoder/vision_model/",),
        encode=encode,
        signature=("patches",),
        view=StableDiffusionXL.conditioner,
    )
    size = model.id_encoder.vision_model.config["image_size"]
    return References(size, encoding, name=PHOTOGRAPHS, prefix="image", whole=True)
