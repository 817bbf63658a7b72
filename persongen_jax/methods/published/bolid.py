"""BoLID: text, face and body in parallel cross-attention; the body as an identity of its own.

D. Kazachkov and A. Filatov, BoLID. A Body-ID encoder reads twelve joints and the body's picture,
a face branch a recogniser's embedding; each becomes four tokens. The target is one image of a
group, the condition an aggregate over others of it (eq. 1). docs/bolid.md says what the source
leaves open, and what is chosen here; every method can have its losses (docs/losses.md).
"""

import jax
import jax.numpy as jnp
from flax import nnx
from ml_collections import ConfigDict

from data_pipeline.examples.fields import Batch, Encoding, Field
from data_pipeline.examples.identity.bodies import Bodies
from data_pipeline.records.schema import MAX_REFERENCES
from persongen_jax.diffusion.conditioning import Conditioning
from persongen_jax.methods.base import Method, Model, Parts, condition_on_text, prompts, references
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
from persongen_jax.models.encoders.group import AGGREGATES, GroupTokens
from persongen_jax.models.sdxl.parts import StableDiffusionXL

TOKENS = 4  # of the face, and of the body


class BoLID(FaceReader, Method):
    """Streams "face" and "body", four tokens each per person, read by parallel branches.

    Attributes:
        body: whether there is the body branch, config.bolid_body.
    """

    at_trigger = False
    body = True

    def attach(self, parts: Parts, config: ConfigDict, rngs: nnx.Rngs) -> None:
        """The encoders, their projections and the branches.

        Reads config.bolid_body, bolid_aggregate, bolid_reduced, id_norm_gain, face_encoder (a
        recogniser's file), id_encoder (a CLIP directory; default: ``<base>/image_encoder``), dtype,
        and start_from: an earlier run of BoLID.

        Raises:
            ValueError: an unknown aggregate, no face encoder, or a start from a weight file.
        """
        model: Model = parts.model
        self._read(config)
        origin = find_run(config, "BoLID")
        kw = {"dtype": jnp.dtype(config.dtype), "param_dtype": jnp.float32, "rngs": rngs}
        sizes = {
            "features": model.unet.config["cross_attention_dim"][-1],
            "reduced": config.bolid_reduced,
            "aggregate": config.bolid_aggregate,
            "num_tokens": TOKENS,
        }
        width = add_face_encoder(model, config, "BoLID")
        model.face_proj = GroupTokens(width, **sizes, **kw)
        projections = [model.face_proj]
        if self.body:
            width = add_image_encoder(model, config, "BoLID", "bodies")
            model.body_proj = GroupTokens(width, joints=True, **sizes, **kw)
            projections.append(model.body_proj)
        scale_norms(projections, config)
        for name in self.branches:
            add_branch(model.unet, name)
        load_remaining(model, origin)

    def _read(self, config):
        if config.bolid_aggregate not in AGGREGATES:
            raise ValueError(
                f"config.bolid_aggregate={config.bolid_aggregate!r}: give {', '.join(AGGREGATES)}"
            )
        check_face_encoder(config, "BoLID")
        self.body = config.bolid_body
        which = "(face|body)" if self.body else "face"
        self.groups = (
            (rf"{which}_proj/.*", "projections"),
            (rf"unet/.*/attn2/branches/{which}/to_[kv]/kernel", "identity"),
        )

    @property
    def branches(self) -> tuple[str, ...]:
        """The streams that the UNet reads in addition to "text"."""
        return ("face", "body") if self.body else ("face",)

    # ---- what it reads ----

    def fields(self, parts: Parts, config: ConfigDict) -> tuple[Field, ...]:
        model: Model = parts.model
        fields = prompts(parts, config, at_trigger=False), references(self, model, config)
        return (*fields, bodies(model)) if self.body else fields

    def condition(self, model: Model, batch: Batch) -> Conditioning:
        """Streams "face" and "body", [b, 4, d] each, [b, people * 4, d] of several people.

        Where there is no reference, the tokens are those of a zero feature, on the unconditional
        side as well.
        """
        conditioning = condition_on_text(model, batch)
        if "id_features" in batch:
            embeds = batch["id_features"]
        else:
            embeds = self.encode_references(model, batch["id_pixel_values"])
        tokens = {"face": _tokens(model.face_proj, embeds, batch["id_mask"])}
        if self.body:
            mask, joints = batch["body_mask"], batch["body_points"]
            tokens["body"] = _tokens(model.body_proj, _body_features(model, batch), mask, joints)
        for name, own in tokens.items():
            conditioning = conditioning.with_stream(name, own, jnp.ones(own.shape[:2], bool))
        return conditioning


# ---- Bodies and groups -------------------------------------------------------------------------


def bodies(model: Model) -> Bodies:
    """The references' bodies, read by CLIP's image tower."""

    def encode(model, pixels):
        return {"features": model.image_encoder(pixels).pooler_output}

    encoding = Encoding(
        kind="bodies",
        weights=("image_encoder/",),
        encode=encode,
        view=StableDiffusionXL.conditioner,
    )
    return Bodies(model.image_encoder.config["image_size"], encoding)


def _body_features(model, batch) -> jax.Array:
    """The image encoder's pooled output of the bodies, [b, r, d]."""
    if "body_features" in batch:
        return batch["body_features"]
    pixels = batch["body_pixel_values"]
    b, r = pixels.shape[:2]
    pooled = model.image_encoder(pixels.reshape(b * r, *pixels.shape[2:])).pooler_output
    return pooled.reshape(b, r, -1)


def _tokens(projection, embeds, mask, *more) -> jax.Array:
    """Tokens [b, people * 4, d]: each person's images are a group, whose places are adjacent."""
    b, r = mask.shape

    def by_person(array):
        return array.reshape(-1, MAX_REFERENCES, *array.shape[2:])

    # What absent places hold does not matter, but it must be finite for the gradient's sake.
    embeds = jnp.where(mask[..., None], embeds, 0)
    tokens = projection(by_person(embeds), by_person(mask), *map(by_person, more))
    return tokens.reshape(b, r // MAX_REFERENCES * TOKENS, -1)
