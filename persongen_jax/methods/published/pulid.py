"""PuLID: a face's vector and EVA-CLIP's features as tokens, next to the text (arXiv 2404.16022).

Of each reference a recogniser reads the aligned face, and EVA-CLIP a larger crop, grey on white.
An encoder makes tokens of both, which an attention of its own reads in every cross-attention
(models/id_attention.py). Versions 1 and 1.1 have published files
(weights/formats/identity/pulid.py). docs/published_adapters.md says how to use them and what the
paper leaves open of the training.
"""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from ml_collections import ConfigDict

from data_pipeline.examples.fields import Batch, Field
from data_pipeline.examples.identity.portraits import Portraits
from data_pipeline.records.schema import MAX_REFERENCES
from persongen_jax.diffusion.conditioning import Conditioning
from persongen_jax.diffusion.options import SamplingOptions
from persongen_jax.methods.base import (
    Method,
    Model,
    Parts,
    condition_on_text,
    denoiser_module,
    prompts,
)
from persongen_jax.methods.published.pulid_face import add_parser, add_tower, face_features
from persongen_jax.methods.published.pulid_losses import (
    Weights,
    face_similarity_loss,
    few_step_terms,
    few_steps,
)
from persongen_jax.methods.readers import (
    AlignedFaceReader,
    add_face_encoder,
    check_face_encoder,
)
from persongen_jax.methods.start import Origin, find_origin, is_abstract, load_remaining
from persongen_jax.models.branches import add_branch
from persongen_jax.models.encoders.pulid import IDEncoder, IDFormer
from persongen_jax.models.faces.keypoint_net import KeypointNet
from persongen_jax.models.id_attention import IDCrossAttention, set_mode
from persongen_jax.models.layers import UnusedRngs
from persongen_jax.weights.formats.identity.pulid import ENCODERS, load_pulid_into, read_pulid
from persongen_jax.weights.formats.identity.shared import HEAD_DIM
from persongen_jax.weights.formats.keypoint_net import load_keypoint_net

BRANCH = "identity"
SCALE = 0.8  # of the branch, in all releases


@dataclasses.dataclass(frozen=True)
class Release:
    """How a released demonstration runs PuLID.

    Attributes:
        version: of the files that it loads. base: what it was made for.
        zeros, mode: the attention's, see models/id_attention.py.
        options: of the sampling.
    """

    version: str
    base: str
    zeros: int
    mode: str
    options: SamplingOptions


def _lightning(**options) -> SamplingOptions:
    trailing = {"timestep_spacing": "trailing"}
    few: dict[str, Any] = {"num_inference_steps": 4, "guidance_scale": 1.2}
    few |= {"scheduler": "dpmpp_2m", "scheduler_options": trailing}
    return SamplingOptions(**few, **options)


LIGHTNING = "SDXL-Lightning's UNet for four steps"
RELEASES = {
    "fidelity": Release("v1", LIGHTNING, 8, "ortho_v2", _lightning()),
    "style": Release("v1", LIGHTNING, 16, "ortho", _lightning(height=1024, width=768)),
    "v1.1": Release(
        *("v1.1", "Juggernaut XL v9", 20, "ortho_v2"),
        SamplingOptions(25, 7.0, scheduler="k_dpmpp_2m", height=1152, width=896),
    ),
    "v1.1-lightning": Release(
        *("v1.1", "DreamShaper XL Lightning", 20, "ortho_v2"),
        SamplingOptions(5, 2.0, scheduler="k_dpmpp_sde", height=1152, width=896),
    ),
}
USUAL = {"v1": "fidelity", "v1.1": "v1.1"}  # release by version


class PuLID(AlignedFaceReader, Method):
    """Face tokens in the stream "identity".

    Without the condition, as on the unconditional side of guidance, zeros are encoded in place of
    the references, as in the released code. Who has no references adds exactly nothing.

    Attributes:
        few_steps: config.pulid_few_steps, of the samples that the losses beyond the diffusion loss
            judge; 0: there are none. weights: of these losses.
        id_mix: config.pulid_id_mix, of version 1 alone: whether all ten tokens of each further
            reference are read, or only the five of its vector. Version 1.1 makes one set of tokens
            of all references.
    """

    at_trigger = False
    scales = ((BRANCH, SCALE),)
    start_merge_step = -1
    options = (
        *("pulid_release", "pulid_mode", "pulid_zeros", "pulid_id_mix"),
        *("pulid_crop", "pulid_face_parser"),
    )
    groups = (
        (r"id_adapter/.*", "projections"),
        (rf"unet/.*/attn2/branches/{BRANCH}/to_[kv]/kernel", "identity"),
    )
    id_mix, crop, few_steps = False, 512, 0
    weights = Weights(0.6, 0.1, 1.0)

    def attach(self, parts: Parts, config: ConfigDict, rngs: nnx.Rngs) -> None:
        """Both readers of faces, the encoder and the branch.

        Reads config.face_encoder (a recogniser's file), id_encoder (EVA-CLIP's file, or the folder
        of a CLIP for training from scratch), pulid_version ("v1" or "v1.1"; a file has its own),
        pulid_release, pulid_mode and pulid_zeros in place of the release's, pulid_id_mix,
        pulid_crop, pulid_face_parser (facexlib's file), id_norm_gain, dtype, what the losses need,
        and start_from: a PuLID file or an earlier run.

        Raises:
            ValueError: no face encoder, networks of other widths than a file's, an unknown version,
                release or mode, or pulid_id_mix of version 1.1.
        """
        model: Model = parts.model
        check_face_encoder(config, "PuLID")
        self.id_mix, self.crop = config.pulid_id_mix, config.pulid_crop
        origin = find_origin(config)
        version, file_sizes = _version(config, origin)
        release = _release(config, version)
        if self.id_mix and version == "v1.1":
            raise ValueError(
                "config.pulid_id_mix: PuLID v1.1 makes one set of tokens of all references; leave "
                "it off"
            )
        width = add_face_encoder(model, config, "PuLID")
        seen, in_features = add_tower(model, config)
        add_parser(model, config)
        kw = {"dtype": jnp.dtype(config.dtype), "param_dtype": jnp.float32, "rngs": rngs}
        sizes = file_sizes or _published_sizes(model, version, width + seen, in_features)
        if (sizes["id_features"], sizes["in_features"]) != (width + seen, in_features):
            raise ValueError(
                f"{origin.file}: reads vectors {sizes['id_features']} wide and feature maps "
                f"{sizes['in_features']} wide, and the recogniser with the image encoder gives "
                f"{width + seen} and {in_features}. Give those that it was made for: antelopev2's "
                "glintr100.onnx and EVA02_CLIP_L_336_psz14_s6B.pt."
            )
        model.id_adapter = ENCODERS[version](**sizes, **kw)
        add_branch(model.unet, BRANCH, IDCrossAttention)
        zeros = release.zeros if config.pulid_zeros < 0 else config.pulid_zeros
        set_mode(model.unet, BRANCH, config.pulid_mode or release.mode, zeros)
        self._read_losses(model, config)
        if origin.file:
            load_pulid_into(model, origin.file, BRANCH)
        else:
            _scale_tokens(model.id_adapter, config.get("id_norm_gain", 1.0))
        load_remaining(model, origin)

    def _read_losses(self, model, config):
        self.few_steps = config.get("pulid_few_steps", 0)
        if not self.few_steps:
            return
        self.weights = Weights(config.pulid_sem, config.pulid_layout, config.pulid_id)
        if config.get("remat"):
            raise ValueError(
                "config.remat: the queries of PuLID's few-step losses are read between its layers; "
                "leave it off, these steps are computed again as wholes"
            )
        self.decodes = bool(self.weights.id)
        if self.decodes:
            model.face_points = _face_points(config, is_abstract(model))

    # ---- what it reads ----

    def fields(self, parts: Parts, config: ConfigDict) -> tuple[Field, ...]:
        text = prompts(parts, config, at_trigger=False)
        faces, portraits = self.faces(parts.model), Portraits(self.crop)
        faces.paired = portraits.paired = True
        return text, faces, portraits

    def condition(self, model: Model, batch: Batch) -> Conditioning:
        """Stream "identity": of each person 4 * 10 tokens in version 1, 32 in version 1.1."""
        tokens, mask = self.tokens(model, batch)
        return condition_on_text(model, batch).with_stream(BRANCH, tokens, mask)

    def tokens(self, model: Model, batch: Batch) -> tuple[jax.Array, jax.Array]:
        """Tokens [b, n, d] of all people, and which of them are read [b, n]."""
        vectors, maps = face_features(model, self.face_embeds(model, batch), batch)
        b, r, _ = vectors.shape
        mask, dropped = batch["portrait_mask"], batch["portrait_dropped"]
        rows = (b * (r // MAX_REFERENCES), MAX_REFERENCES)  # a row for each person

        def by_person(array):
            shown = (mask & ~dropped).reshape(b, r, *[1] * (array.ndim - 2))
            # What absent places hold does not matter, but it must be finite.
            return jnp.where(shown, array, 0).reshape(*rows, *array.shape[2:])

        vectors, maps = by_person(vectors), tuple(map(by_person, maps))
        own, some = mask.reshape(rows), mask.reshape(rows).any(1)
        first = jnp.arange(MAX_REFERENCES) == 0
        if model.id_adapter.version == "v1.1":
            # Without the condition one picture of zeros, however many references there are.
            one = dropped.reshape(rows) | ~some[:, None]
            tokens = model.id_adapter(vectors, maps, jnp.where(one, first, own))
            there = jnp.broadcast_to(some[:, None], tokens.shape[:2])
        else:
            flat = tuple(y.reshape(-1, *y.shape[2:]) for y in maps)
            tokens = model.id_adapter(vectors.reshape(-1, vectors.shape[-1]), flat)
            n = tokens.shape[1]
            tokens = tokens.reshape(rows[0], MAX_REFERENCES * n, -1)
            there = jnp.repeat(own[..., None], n, axis=2)
            if not self.id_mix:
                of_vector = jnp.arange(n) < model.id_adapter.num_id_tokens
                there &= first[None, :, None] | of_vector
            there = there.reshape(rows[0], -1)
        return tokens.reshape(b, -1, tokens.shape[-1]), there.reshape(b, -1)

    # ---- training ----

    def losses(self, model: Model, batch: Batch, step: Any) -> dict[str, jax.Array]:
        """The diffusion loss; with ``few_steps`` the paper's others, on samples of all rows."""
        if not self.few_steps:
            return {"loss": step.mse}
        view = denoiser_module(model, self)

        def denoise(x, t, conditioning):
            return self.denoise(view, x, t, conditioning)

        judge = None
        if self.weights.id:
            first = self.face_embeds(model, batch)[:, 0]
            judge = functools.partial(
                face_similarity_loss,
                model.face_encoder,
                model.face_points,
                wanted=first,
                counts=batch["portrait_mask"].any(1) & ~batch["portrait_dropped"].any(1),
            )
        plan = few_steps(step.schedule, self.few_steps)
        rest = (BRANCH, plan, self.weights, step, judge)
        terms = few_step_terms(denoise, self.condition(model, batch), *rest)
        added = sum(value for name, value in terms.items() if name.startswith("loss_"))
        return {"loss": step.mse + added, **terms}


# ---- Its settings and sizes --------------------------------------------------------------------


def _version(config, origin: Origin) -> tuple[str, dict[str, Any]]:
    """The version, and the encoder's sizes where a file has them."""
    if origin.file:
        with read_pulid(origin.file) as file:
            return file.version, file.sizes
    if config.pulid_version not in ENCODERS:
        raise ValueError(f"config.pulid_version={config.pulid_version!r}: give v1 or v1.1")
    return config.pulid_version, {}


def _release(config, version: str) -> Release:
    name = config.pulid_release or USUAL[version]
    of_version = [key for key, release in RELEASES.items() if release.version == version]
    if name not in of_version:
        known = ", ".join(of_version)
        raise ValueError(f"config.pulid_release={name!r}: of PuLID {version} there are {known}")
    return RELEASES[name]


def _published_sizes(model, version: str, width: int, in_features: int) -> dict[str, Any]:
    """The encoder's, which reads vectors and feature maps of these widths, for this UNet."""
    text = model.unet.config["cross_attention_dim"][-1]
    sizes = {"id_features": width, "in_features": in_features}
    if version == "v1":
        return {**sizes, "features": text}
    heads = max(1, text // 2 // HEAD_DIM)  # 16 for SDXL's 2048
    return {**sizes, "features": heads * HEAD_DIM, "out_features": text, "heads": heads}


def _face_points(config, abstract: bool):
    """The net that finds the face of a sample, for the ID loss."""
    kind, _, folder = str(config.pulid_face_points).partition(":")
    if kind != "keypoints" or not folder:
        raise ValueError(
            f"config.pulid_face_points={config.pulid_face_points!r}: PuLID's ID loss finds "
            "faces by it; give keypoints:DIR, or set config.pulid_id=0"
        )
    if abstract and not Path(folder).exists():
        return KeypointNet({}, rngs=UnusedRngs())
    return load_keypoint_net(folder)


def _scale_tokens(encoder: IDEncoder | IDFormer, gain: float) -> None:
    """Multiply what the untrained encoder gives: at full strength it would drown the prompt."""
    if isinstance(encoder, IDFormer):
        outs = [encoder.proj_out]
    else:
        parts = (part for name, part in vars(encoder).items() if name.startswith("mapping"))
        outs = [part[-1].kernel for part in (encoder.body, *parts)]
    for leaf in outs:
        leaf.set_value(leaf.get_value() * gain)
