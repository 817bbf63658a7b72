"""InstantID: a face's embedding as 16 tokens, and where it is by an IdentityNet (arXiv 2401.07519).

A resampler makes a recogniser's raw embedding 16 tokens, which a parallel branch of every
cross-attention reads, and so does, in place of the prompt, the IdentityNet: a ControlNet on a
picture of five points of the face. Facts that the paper leaves open are the released code's. The
published files are loaded (weights/formats/identity/instantid.py and a ControlNet's folder); both
can be trained from scratch as well. docs/published_adapters.md says how to use it.
"""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import ArrayLike
from ml_collections import ConfigDict

from data_pipeline.examples.fields import Batch, Field
from data_pipeline.examples.identity.face_points import FacePoints
from data_pipeline.pose.limbs import Widths
from data_pipeline.records.schema import MAX_REFERENCES
from persongen_jax.diffusion.conditioning import Conditioning, Residuals, TokenStream
from persongen_jax.methods.base import Method, Model, Parts, condition_on_text, prompts
from persongen_jax.methods.published.controlnet import new_controlnet
from persongen_jax.methods.readers import (
    AlignedFaceReader,
    add_face_encoder,
    check_face_encoder,
)
from persongen_jax.methods.start import Origin, find_origin, is_abstract, load_remaining
from persongen_jax.models.branches import add_branch
from persongen_jax.models.encoders.resampler import Resampler
from persongen_jax.weights.formats.controlnet import load_controlnet
from persongen_jax.weights.formats.identity.instantid import (
    load_instantid_into,
    published_sizes,
    read_instantid,
)
from persongen_jax.weights.licences import say_terms

BRANCH = "identity"
POINTS = "face_points"  # the picture of five points, and its map
SEVERAL = ("mean", "sequence")  # what several references of a person become
SCALE = 0.8  # of both parts, in the released scripts


class InstantID(AlignedFaceReader, Method):
    """Face tokens in the stream "identity", and the IdentityNet ``model.controlnet``.

    Without a picture of points, or with a black one, the IdentityNet adds nothing. A person without
    references adds nothing either; on the unconditional side of guidance, where nobody has any,
    both parts read the tokens of a zero embedding, as the released code does.

    Attributes:
        several: config.instantid_references: "mean", or "sequence", where the resampler reads the
            embeddings of all references next to each other. Still 16 tokens.
    """

    at_trigger = False
    denoises_with = ("controlnet",)
    scales = ((BRANCH, SCALE), (POINTS, SCALE))
    start_merge_step = -1
    options = ("instantid_references", "face_point_radius")
    groups = (
        (r"image_proj/.*", "projections"),
        (rf"unet/.*/attn2/branches/{BRANCH}/to_[kv]/kernel", "identity"),
        (r"controlnet/.*", "controlnet"),
    )
    several = "mean"

    def attach(self, parts: Parts, config: ConfigDict, rngs: nnx.Rngs) -> None:
        """The face encoder, the resampler, the branch and the IdentityNet.

        Reads config.face_encoder (a recogniser's file), controlnet (the IdentityNet's folder; "":
        a copy of the UNet, to be trained), instantid_references, id_norm_gain, dtype, and
        start_from: InstantID's ip-adapter.bin, which sets all sizes, or an earlier run.

        Raises:
            ValueError: no face encoder, or one of another width; a file without its IdentityNet; an
                unknown way to read several references.
        """
        model: Model = parts.model
        self.several = config.instantid_references
        if self.several not in SEVERAL:
            known = " or ".join(SEVERAL)
            raise ValueError(f"config.instantid_references={self.several!r}: give {known}")
        check_face_encoder(config, "InstantID")
        origin = find_origin(config)
        model.controlnet = _identity_net(model, config, origin, rngs)
        width = add_face_encoder(model, config, "InstantID")
        sizes = _sizes(model, config, origin, width)
        kw = {"dtype": jnp.dtype(config.dtype), "param_dtype": jnp.float32, "rngs": rngs}
        model.image_proj = Resampler(**sizes, **kw)
        add_branch(model.unet, BRANCH)
        if origin.file:
            load_instantid_into(model, origin.file, BRANCH)
        else:
            norm = model.image_proj.norm_out
            norm.scale.set_value(norm.scale.get_value() * config.get("id_norm_gain", 1.0))
        load_remaining(model, origin)

    # ---- what it reads ----

    def fields(self, parts: Parts, config: ConfigDict) -> tuple[Field, ...]:
        text = prompts(parts, config, at_trigger=False)
        faces = self.faces(parts.model, places=self.several == "sequence")
        text.alone_drop_prob = config.get("text_drop_prob", 0.0)
        faces.alone_drop_prob = config.get("identity_drop_prob", 0.0)
        radius = config.get("face_point_radius", 10)
        points = FacePoints(POINTS, Widths(max(1, round(0.4 * radius)), radius))
        points.drop_prob = config.get("control_drop_prob", 0.0)
        return text, faces, points

    def condition(self, model: Model, batch: Batch) -> Conditioning:
        """Stream "identity" [b, people * 16, d], and the map of points [b, h, w, 3]."""
        embeds, mask = self.face_embeds(model, batch), batch["id_mask"]
        tokens, there = self.tokens(model.image_proj, embeds, mask, batch.get("id_places"))
        conditioning = condition_on_text(model, batch).with_stream(BRANCH, tokens, there)
        return conditioning.with_map(POINTS, batch[POINTS])

    def tokens(
        self,
        image_proj: Resampler,
        embeds: jax.Array,
        mask: jax.Array,
        places: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """Tokens [b, people * n, d] of raw embeddings [b, people * 4, e], and their mask.

        Those of a person without references are masked; but where nobody of a row has any, they are
        those of a zero embedding, and not. Of a sequence they are those of as many zeros as there
        were references before they were dropped, as in the released code.

        Args:
            mask: [b, people * 4] where there is a reference; places: where there was one.
        """
        b, r = mask.shape
        people = r // MAX_REFERENCES
        # What absent places hold does not matter, but it must be finite for the gradient's sake.
        embeds = jnp.where(mask[..., None], embeds, 0)
        embeds = embeds.reshape(b * people, MAX_REFERENCES, -1)
        own = mask.reshape(b * people, MAX_REFERENCES)
        if self.several == "mean":
            count = jnp.maximum(own.sum(1), 1)[:, None, None].astype(embeds.dtype)
            tokens = image_proj(embeds.sum(1, keepdims=True) / count)
        else:
            read = own if places is None else own | places.reshape(own.shape)
            tokens = image_proj(embeds, read.at[:, 0].set(read[:, 0] | ~read.any(1)))
        n = tokens.shape[1]
        there = own.any(1).reshape(b, people) | ~mask.any(1, keepdims=True)
        return tokens.reshape(b, people * n, -1), jnp.repeat(there, n, axis=1)

    # ---- the IdentityNet ----

    def denoise(
        self,
        model: Model,
        x: jax.Array,
        t: ArrayLike,
        conditioning: Conditioning,
        step: ArrayLike | None = None,
    ) -> jax.Array:
        """The UNet with the IdentityNet's residuals.

        With regions the IdentityNet runs once per person, one after the other, and each person's
        residuals are weighted by the region, at the resolution of each.
        """
        residuals = _residuals(model.controlnet, x, t, conditioning)
        return model.unet(x, t, conditioning.with_residuals(residuals))


def _residuals(net, x, t, conditioning: Conditioning) -> Residuals:
    """What the IdentityNet adds for all people together; exactly 0 where it reads nothing."""
    points, faces = conditioning.maps[POINTS], conditioning.streams[BRANCH]
    people = 1 if faces.region is None else faces.region.shape[1]
    shown = (points.pixels > 0).any((1, 2, 3))

    def of_person(tokens, mask, region):
        present = mask.any(1)
        # Softmax over nothing is undefined: attend to everything and discard the result.
        read = TokenStream(tokens, mask | ~present[:, None])
        own = replace(conditioning, streams={"text": read}, maps={}, residuals=None)
        found = net(x, t, own, points.pixels, points.scale)
        acts = (present & shown)[:, None, None, None]

        def weigh(residual):
            residual = jnp.where(acts, residual, 0)
            if region is None:
                return residual
            where = TokenStream(tokens, region=region[:, None])
            where = where.at_resolution(*residual.shape[1:3]).region
            return residual * where[:, 0, ..., None].astype(residual.dtype)

        return jax.tree.map(weigh, found)

    b, n, d = faces.tokens.shape
    mask = jnp.ones((b, n), bool) if faces.mask is None else faces.mask
    if people == 1:
        region = None if faces.region is None else faces.region[:, 0]
        return of_person(faces.tokens, mask, region)
    each = (
        faces.tokens.reshape(b, people, -1, d),
        mask.reshape(b, people, -1),
        faces.region,
    )
    each = jax.tree.map(lambda array: jnp.moveaxis(array, 1, 0), each)
    total = of_person(*jax.tree.map(lambda array: array[0], each))
    rest = jax.tree.map(lambda array: array[1:], each)

    # One person after the other: the memory is that of one.
    def add(total, one):
        return total + of_person(*one), None

    return jax.lax.scan(add, total, rest)[0]


# ---- Its parts ---------------------------------------------------------------------------------


def _identity_net(model, config, origin: Origin, rngs):
    folder = config.get("controlnet", "")
    if folder:
        kw = {"dtype": jnp.dtype(config.dtype), "param_dtype": jnp.float32}
        net, _ = load_controlnet(folder, model.unet.config, **kw)
        _check_image(net, model, folder)
        if not is_abstract(model):
            published = "instantid" if origin.file else "controlnet"
            say_terms(f"the IdentityNet is {folder}", str(folder), published)
        return net
    if origin.file:
        raise ValueError(
            f"{origin.file}: InstantID's adapter, without its IdentityNet: give the folder "
            "ControlNetModel that was published with it, to load_method as controlnet, to generate "
            "as --method-controlnet, to training as --config.controlnet"
        )
    return new_controlnet(model, rngs)


def _check_image(net, model, folder) -> None:
    factor = model.vae.vae_scale_factor
    if net.factor != factor or net.config["conditioning_channels"] != 3:
        raise ValueError(
            f"{folder}: reads images of {net.config['conditioning_channels']} channels that are "
            f"{net.factor} times as large as latents; an IdentityNet for this base reads 3 "
            f"channels and {factor} times. Give one that was made for this base."
        )


def _sizes(model, config, origin: Origin, width: int) -> dict[str, Any]:
    """The resampler's, which reads embeddings of this width."""
    if not origin.file:
        return published_sizes(width, model.unet.config["cross_attention_dim"][-1])
    with read_instantid(origin.file) as file:
        sizes = file.sizes
    if sizes["in_features"] != width:
        raise ValueError(
            f"{origin.file}: reads embeddings {sizes['in_features']} wide, and those of "
            f"{config.face_encoder} are {width} wide. Give the recogniser that it was made for: "
            "InstantID's is antelopev2's glintr100.onnx, 512 wide (an IP-Adapter plus looks alike, "
            "and reads an image encoder's patches)"
        )
    return sizes
