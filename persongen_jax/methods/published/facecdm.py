"""FaceCDM: text, image and face in triplet cross-attention, and a ControlNet on the pose.

J. Zhou, FaceCDM (guided by L. Zhang and D. Zou). A face encoder reads the face, an image encoder
the whole photograph; each embedding becomes four tokens. Training has three stages, from broad
strokes to fine details: the image branch; the face branch too; the ControlNet and everything.
docs/facecdm.md says what the source leaves open, and what is chosen here.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import ArrayLike
from ml_collections import ConfigDict

from data_pipeline.examples.conditions import References
from data_pipeline.examples.fields import Batch, Encoding, Field
from data_pipeline.records.schema import MAX_REFERENCES
from persongen_jax.diffusion.conditioning import Conditioning, TokenStream
from persongen_jax.methods.base import Method, Model, Parts, condition_on_text, prompts, references
from persongen_jax.methods.published.controlnet import control_image, new_controlnet
from persongen_jax.methods.readers import (
    FaceReader,
    add_face_encoder,
    add_image_encoder,
    check_face_encoder,
    find_run,
    scale_norms,
)
from persongen_jax.methods.start import load_remaining
from persongen_jax.models.branches import add_branch
from persongen_jax.models.encoders.reduce_uplift import ReduceAndUplift
from persongen_jax.models.sdxl.parts import StableDiffusionXL

STAGES = (1, 2, 3)
READINGS = ("triplet", "joint")
PHOTOGRAPHS = "photographs"  # the field of whole photographs
TOKENS = 4  # of an embedding
SCALE = 0.8  # of each branch and of the ControlNet in the seed's own generation


class FaceCDM(FaceReader, Method):
    """Tokens of the photographs and of the faces, each read by a branch, or both by one.

    Attributes:
        stage: 1 to 3, config.facecdm_stage: what there is, and by default all of it is trained.
        joint: config.facecdm_attention: one branch "condition" over both kinds of tokens, as the
            seed's figure draws it, instead of "image" and "face" with scales of their own.
        control: the name of the pose image and of its map.
    """

    at_trigger = False
    stage, joint, control = 3, False, "pose"

    def attach(self, parts: Parts, config: ConfigDict, rngs: nnx.Rngs) -> None:
        """Both encoders and their projections, the branches, and in stage 3 the ControlNet.

        Reads config.facecdm_stage, facecdm_attention, facecdm_reduced, id_norm_gain, face_encoder
        (a recogniser's file), id_encoder (a CLIP directory; default: ``<base>/image_encoder``),
        dtype, and start_from: a run of an earlier stage.

        Raises:
            ValueError: an unknown stage or reading, or no face encoder.
        """
        model: Model = parts.model
        self._read(config)
        origin = find_run(config, "FaceCDM")
        if self.stage == 3:  # before the branches, which it does not have
            model.controlnet = new_controlnet(model, rngs)
        kw = {"dtype": jnp.dtype(config.dtype), "param_dtype": jnp.float32, "rngs": rngs}
        sizes = {
            "features": model.unet.config["cross_attention_dim"][-1],
            "reduced": config.facecdm_reduced,
            "num_tokens": TOKENS,
        }
        width = add_image_encoder(model, config, "FaceCDM", "photographs")
        model.image_proj = ReduceAndUplift(width, **sizes, **kw)
        projections = [model.image_proj]
        if self.stage > 1:
            width = add_face_encoder(model, config, "FaceCDM")
            model.face_proj = ReduceAndUplift(width, **sizes, **kw)
            projections.append(model.face_proj)
        scale_norms(projections, config)
        for name in self.branches:
            add_branch(model.unet, name)
        load_remaining(model, origin)
        self.groups = self._groups()

    def _read(self, config):
        self.stage, reading = config.facecdm_stage, config.facecdm_attention
        if self.stage not in STAGES:
            raise ValueError(f"config.facecdm_stage={self.stage!r}: give 1, 2 or 3")
        if reading not in READINGS:
            known = " or ".join(READINGS)
            raise ValueError(f"config.facecdm_attention={reading!r}: give {known}")
        if self.stage > 1:
            check_face_encoder(config, "FaceCDM")
        self.joint, self.control = reading == "joint", config.control
        self.denoises_with = ("controlnet",) if self.stage == 3 else ()
        acting = (*self.branches, self.control) if self.stage == 3 else self.branches
        self.scales = tuple((name, SCALE) for name in acting)

    def _groups(self):
        rows = [(r"(image|face)_proj/.*", "projections")]
        rows += [
            (rf"unet/.*/attn2/branches/{name}/to_[kv]/kernel", "identity") for name in self.branches
        ]
        rows += [(r"controlnet/.*", "controlnet")] if self.stage == 3 else []
        return tuple(rows)

    @property
    def branches(self) -> tuple[str, ...]:
        """The streams that the UNet reads in addition to "text"."""
        if self.joint:
            return ("condition",)
        return ("image", "face")[: min(self.stage, 2)]

    # ---- what it reads ----

    def fields(self, parts: Parts, config: ConfigDict) -> tuple[Field, ...]:
        model: Model = parts.model
        fields: tuple[Field, ...] = prompts(parts, config, at_trigger=False), photographs(model)
        if self.stage > 1:
            fields = (*fields, references(self, model, config))
        if self.stage == 3:
            fields = (*fields, control_image(config, optional=True))
        return fields

    def condition(self, model: Model, batch: Batch) -> Conditioning:
        """Streams "image" and "face", [b, r * 4, d] each, or "condition" with both; the pose.

        Where there is none, the projection reads zeros, as the unconditional side of the seed's
        generation does.
        """
        conditioning = condition_on_text(model, batch)
        features = _photograph_features(model, batch)
        tokens = {"image": _tokens(model.image_proj, features, "image", batch)}
        if self.stage > 1:
            if "id_features" in batch:
                features = batch["id_features"]
            else:
                features = self.encode_references(model, batch["id_pixel_values"])
            tokens["face"] = _tokens(model.face_proj, features, "id", batch)
        if self.joint:
            tokens = {"condition": _joined(tokens.values())}
        for name, (own, mask) in tokens.items():
            conditioning = conditioning.with_stream(name, own, mask)
        if self.stage == 3:
            conditioning = conditioning.with_map(self.control, batch[self.control])
        return conditioning

    def denoise(
        self,
        model: Model,
        x: jax.Array,
        t: ArrayLike,
        conditioning: Conditioning,
        step: ArrayLike | None = None,
    ) -> jax.Array:
        """The ControlNet's cross-attention reads the condition embedding instead of the text.

        A black pose image has no joints: nothing is added then.
        """
        if self.stage < 3:
            return model.unet(x, t, conditioning)
        pose, streams = conditioning.maps[self.control], conditioning.streams
        tokens, mask = _joined((streams[n].tokens, streams[n].mask) for n in self.branches)
        read = replace(conditioning, streams={"text": TokenStream(tokens, mask)}, maps={})
        scale = (pose.pixels > 0).any((1, 2, 3)).astype(jnp.float32)
        if pose.scale is not None:
            scale = scale * pose.scale
        residuals = model.controlnet(x, t, read, pose.pixels, scale)
        return model.unet(x, t, conditioning.with_residuals(residuals))


# ---- Photographs and faces ---------------------------------------------------------------------


def photographs(model: Model) -> References:
    """The references' whole photographs, read by the image encoder."""

    def encode(model, pixels):
        return {"features": model.image_encoder(pixels).pooler_output}

    encoding = Encoding(
        kind=PHOTOGRAPHS,
        weights=("image_encoder/",),
        encode=encode,
        view=StableDiffusionXL.conditioner,
    )
    size = model.image_encoder.config["image_size"]
    return References(size, encoding, name=PHOTOGRAPHS, prefix="image", whole=True)


def _photograph_features(model, batch) -> jax.Array:
    """The image encoder's pooled output of the photographs, [b, r, d]."""
    if "image_features" in batch:
        return batch["image_features"]
    pixels = batch["image_pixel_values"]
    b, r = pixels.shape[:2]
    pooled = model.image_encoder(pixels.reshape(b * r, *pixels.shape[2:])).pooler_output
    return pooled.reshape(b, r, -1)


def _tokens(projection, features, prefix, batch) -> tuple[jax.Array, jax.Array]:
    """Tokens [b, r * n, d] and their mask; without references those of zeros, once per person."""
    mask = batch[f"{prefix}_mask"]
    present = mask.any(axis=1)
    features = jnp.where(mask[..., None], features, 0)
    first = jnp.arange(mask.shape[1]) % MAX_REFERENCES == 0
    mask = jnp.where(present[:, None], mask, first)
    tokens = projection(features)
    b, r, n, d = tokens.shape
    return tokens.reshape(b, r * n, d), jnp.repeat(mask, n, axis=1)


def _joined(parts) -> tuple[jax.Array, jax.Array]:
    """Several (tokens, mask) as one sequence, in which a person's tokens are adjacent.

    A stream's region divides it into equal parts, one for each person.
    """
    parts = list(parts)
    b, n, d = parts[0][0].shape
    people = n // (MAX_REFERENCES * TOKENS)
    joined = jnp.concatenate([own.reshape(b, people, -1, d) for own, _ in parts], axis=2)
    mask = jnp.concatenate([own.reshape(b, people, -1) for _, own in parts], axis=2)
    return joined.reshape(b, -1, d), mask.reshape(b, -1)
