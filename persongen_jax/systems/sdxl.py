"""SDXL with an identity method: the base stays frozen, and what the method adds is trained."""

import functools
import logging
from collections.abc import Callable
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.typing import ArrayLike
from ml_collections import ConfigDict

from data_pipeline.examples.buckets import bucket_shapes, check_shapes
from data_pipeline.examples.fields import (
    Batch,
    FaceBox,
    Image,
    TimeIds,
    check_names,
    requirements,
)
from data_pipeline.examples.loss_mask import LossMask
from data_pipeline.examples.source import ExampleSource
from data_pipeline.records.checking import check_source, has_face_boxes
from data_pipeline.records.sources import Opened, content_digests, file_stamps, open_records
from persongen_jax.diffusion.conditioning import Guidance
from persongen_jax.diffusion.options import SamplingOptions
from persongen_jax.diffusion.samplers import init_carry, sample_steps
from persongen_jax.diffusion.schedule import NoiseSchedule, face_box_mask
from persongen_jax.diffusion.scheduler_config import scheduler_of_run
from persongen_jax.features.cache import Features, abstract_batch, cached_kinds
from persongen_jax.losses.base import check_records
from persongen_jax.losses.decoded import DecodedLosses, add_to
from persongen_jax.methods import get_method
from persongen_jax.methods.base import Method, Parts, denoiser_module
from persongen_jax.models.quantised import check_kind
from persongen_jax.models.sdxl.encoder import UNetEncoder
from persongen_jax.models.sdxl.parts import COMPONENTS, StableDiffusionXL
from persongen_jax.models.sdxl.vae import decode_batch
from persongen_jax.systems.base import SamplingProgram
from persongen_jax.systems.diffusion import FACE, VAE, DiffusionSystem, Step
from persongen_jax.systems.read_keys import ReadKeys
from persongen_jax.systems.sdxl_config import METHOD_KEYS, REFERENCES, SETS, sdxl_defaults
from persongen_jax.systems.sdxl_fields import image_encoding
from persongen_jax.training.partition import quantise_frozen
from persongen_jax.weights.formats.sdxl.loading import SDXLBase, load_sdxl
from persongen_jax.weights.quantising import base_layers

log = logging.getLogger(__name__)
DECODER = ("vae/decoder/", "vae/post_quant_conv/")


# Keys of the config that name people to validate on.
PEOPLE_KEYS = (
    *("validate_in_train", "validate_out_of_train", "validate_out_of_domain"),
    "validation_gallery",
)


class Sdxl(DiffusionSystem):
    """Text to image by StableDiffusionXL, personalised by a method.

    Attributes:
        base: SDXLBase, whose model includes the method's parts.
        method: methods.base.Method, attached.
        decoded: the losses on decoded images that the config adds, attached.
    """

    evaluation = "persongen_jax.evaluation.people:Evaluation"

    model: StableDiffusionXL
    codec: VAE

    def __init__(
        self,
        config: ConfigDict,
        base: SDXLBase,
        method: Method,
        decoded: DecodedLosses | None = None,
    ):
        self.config, self.base, self.method = config, base, method
        self.model = base.model
        self.scheduler_config = base.scheduler_config
        self.schedule = NoiseSchedule.from_config(base.scheduler_config)
        self.codec = VAE(base.model.vae)
        self.decoded = decoded or DecodedLosses(ConfigDict(), self.schedule)
        self.read = ReadKeys(config)  # records which keys the method reads
        method_fields = method.fields(Parts(base.model, base.tokenizers), self.read)
        fields = (Image(image_encoding()), *method_fields, TimeIds(), FaceBox())
        if config.get("loss_mask"):
            fields = (*fields, LossMask(config.loss_mask))
        check_names(fields)
        self.fields = (*fields, *self.decoded.fields({field.name for field in fields}))
        self.groups, self.prepares = method.groups, method.prepares

    @classmethod
    def defaults(cls) -> ConfigDict:
        return sdxl_defaults()

    @classmethod
    def open(
        cls, config: ConfigDict, shardings: Callable | jax.sharding.Sharding | None = None
    ) -> Self:
        if not config.base:
            raise ValueError(
                "config.base is empty; give --config.base=DIR, a diffusers-format SDXL directory "
                "(python -m persongen_jax.weights.random_base writes a tiny one)"
            )
        check_kind(config.quantize, "config.quantize")
        dtypes = {"dtype": jnp.dtype(config.dtype), "vae_dtype": jnp.dtype(config.vae_dtype)}
        names = ("unet", "vae", "text_encoders", "prediction_type")
        parts = {name: config[name] for name in names} | {"config": config.base_config}
        check = functools.partial(check_sampler, config)
        base = load_sdxl(config.base, **dtypes, **parts, check=check, shardings=shardings)
        base.scheduler_config = scheduler_of_run(config, base.scheduler_config)
        method, layers = get_method(config.method), base_layers(base.model)
        read = ReadKeys(config)
        method.attach(Parts(base.model, base.tokenizers), read, nnx.Rngs(config.seed))
        if config.quantize:
            table = config.trainable or method.groups
            quantise_frozen(base.model, config.quantize, layers, table)
        set_remat(base.model, config.remat)
        decoded = DecodedLosses(config, NoiseSchedule.from_config(base.scheduler_config))
        decoded.attach(base.model)
        system = cls(config, base, method, decoded)
        system.read.keys |= read.keys
        return system

    @classmethod
    def check_data(cls, config: ConfigDict) -> list[str]:
        method = get_method(config.method)
        # Whether a method of one's own reads the trigger word is known when it is attached.
        ours = type(method).fields.__module__.startswith("persongen_jax.")
        marked = ours and method.at_trigger
        # Most of ours read another image of the person as the reference.
        least = 2 if ours and method.reads_references else 1
        faceless = ours and not method.reads_references
        specs = [config.data, *(config[key] for key in PEOPLE_KEYS)]
        return method.check_data(config) + [
            f"{spec}: {line}"
            for spec in dict.fromkeys(filter(None, specs))
            for line in check_source(
                spec, config.trigger_word, marked=marked, least=least, keep_faceless=faceless
            )
        ]

    @classmethod
    def resolve_config(cls, config: ConfigDict) -> ConfigDict:
        if not config.data:
            return config
        found = "face" if has_face_boxes(config.data) else "whole"
        if config.references not in REFERENCES:
            raise ValueError(
                f"config.references={config.references!r}: give {', '.join(REFERENCES)}"
            )
        if config.references == "face" and found != "face":
            raise ValueError(
                f'config.references="face": {config.data} has no face boxes; leave it out, then '
                "they show whole images"
            )
        config = config.copy_and_resolve_references()
        config.references = found if config.references == "auto" else config.references
        return config

    @classmethod
    def abstract(cls, config: ConfigDict) -> Self:
        from persongen_jax.systems.abstract import abstract_base

        base, method, decoded = abstract_base(config)
        set_remat(base.model, config.remat)
        return cls(config, base, method, decoded)

    @property
    def label(self) -> str:
        return self.config.method

    @property
    def unused_keys(self) -> tuple[str, ...]:
        return self.read.unread(METHOD_KEYS)

    def __str__(self) -> str:
        return f"{self.config.method} on {self.config.base}"

    # ---- examples ----

    def source(self) -> ExampleSource:
        config = self.config
        if not config.data:
            raise ValueError(
                "config.data is empty; give --config.data=DIR, images with a manifest.jsonl "
                "or shards, or drawn people (see data_pipeline/records/sources.py)"
            )
        records, read_image = open_records(
            config.data, config.trigger_word, **requirements(self.fields)
        )
        stamps, marks = file_stamps(config.data), content_digests(config.data)
        opened = self.method.records(Opened(records, read_image, stamps, marks))
        for line in check_records(tuple(self.decoded.losses.values()), opened.records, config.data):
            log.warning("%s", line)
        shapes = bucket_shapes(config.buckets)
        levels = len(self.model.unet.config["block_out_channels"])
        check_shapes(shapes, self.codec.factor * 2 ** (levels - 1))
        features = None
        if config.cache:
            features = Features(config, self.model, self.fields, self.table, opened.stamp)
            print(f"features: {features}")
        return ExampleSource(
            opened.records,
            self.fields,
            batch_size=config.batch_size,
            seed=config.seed,
            size=config.size,
            read_image=opened.read_image,
            random_crop=config.random_crop,
            buckets=shapes,
            features=features,
            mark=opened.mark,
        )

    def abstract_batch(self, cached: bool = False, shape: tuple[int, int] | None = None) -> Batch:
        """``shape``: (height, width) of the target in pixels; default: squares of config.size."""
        shape = shape or (self.config.size, self.config.size)
        kinds = self.cached_kinds() if cached else ()
        return abstract_batch(self.model, self.fields, shape, self.config.batch_size, kinds)

    def random_batch(self, cached: bool = False) -> Batch:
        from persongen_jax.systems.abstract import VOCABULARY, draw_batch

        vocabulary = self.base.configs["text_encoder"].get("vocab_size", VOCABULARY)
        return draw_batch(self.abstract_batch(cached), self.config.size, vocabulary)

    def cached_kinds(self) -> list[str]:
        """What the feature cache can keep under this config's table."""
        reasons = cached_kinds(self.config, self.model, self.fields, self.table)
        return [kind for kind, reason in reasons.items() if not reason]

    def unread(self, cached: bool = False) -> tuple[str, ...]:
        roots: tuple[str, ...] = () if self.method.decodes or self.decoded else DECODER
        if cached:
            kinds = self.cached_kinds()
            encodings = [field.encoding for field in self.fields if field.encoding]
            roots += tuple(r for e in encodings if e.kind in kinds for r in e.weights)
        return roots

    # ---- a step ----

    def update_rules(self) -> dict[str, optax.GradientTransformation]:
        return self.method.update_rules(self.model, self.read)

    def draw(self, key_of: Callable[[int], jax.Array], batch: Batch) -> dict[str, jax.Array]:
        """DiffusionSystem's, and "face_only" [b]: the loss counts the face box alone."""
        draws = super().draw(key_of, batch)
        rows = draws["drop"].shape
        face_only = jax.random.bernoulli(key_of(FACE), self.config.face_loss_prob, rows)
        return {**draws, "face_only": face_only}

    def condition(self, model: Any, batch: Batch) -> Any:
        return self.method.condition(model, batch)

    def denoise(
        self, model: Any, x: jax.Array, t: ArrayLike, condition: Any, step: ArrayLike | None = None
    ) -> jax.Array:
        # Only the parts that sampling sees, so that a part missing there is missed in training too.
        return self.method.denoise(denoiser_module(model, self.method), x, t, condition, step)

    def mask(
        self, batch: Batch, draws: dict[str, jax.Array], shape: tuple[int, ...]
    ) -> tuple[jax.Array | None, dict[str, jax.Array]]:
        """The face box for some examples (PhotoMaker, arXiv 2312.04461, section 3.3)."""
        cells = shape[1], shape[2]
        image_size = cells[0] * self.codec.factor, cells[1] * self.codec.factor
        face, fell_back = face_box_mask(batch["face_box"], image_size, cells)
        face_only = draws["face_only"]
        mask = jnp.where(face_only[:, None, None], face, 1.0)
        if self.config.get("loss_mask"):
            # A cell counts as far as its pixels do.
            own = jax.image.resize(batch["loss_mask"], mask.shape, "linear", antialias=True)
            outside = self.config.loss_mask_outside
            mask = mask * (outside + (1 - outside) * jnp.clip(own, 0, 1))
        return mask, {"face_box_fallbacks": (face_only & fell_back).astype(jnp.float32)}

    def terms(self, model: Any, batch: Batch, step: Step) -> dict[str, jax.Array]:
        losses = self.method.losses(model, batch, step)
        decode = functools.partial(decode_batch, model.vae)
        if not self.decoded.losses:
            return losses
        return add_to(losses, self.decoded(model, batch, step, decode, self.codec.factor))

    # ---- evaluation ----

    def sampling_program(self, steps: int) -> SamplingProgram:
        """The pipeline's loop, including guidance and identity, without the VAE."""
        config, view = self.config, self.model.conditioner()
        graphdef, state = nnx.split(view)
        conditioning = jax.eval_shape(
            lambda s, batch: self.condition(nnx.merge(graphdef, s), batch),
            state,
            self.abstract_batch(),
        )
        names = ("identity", *conditioning.scalable_names)
        options = SamplingOptions.of_validation(config, num_inference_steps=steps)
        plan = self.plan(options)
        calls, per_step = plan.num_steps, plan.calls_per_step
        scales = {name: np.ones(calls, np.float32) for name in names}
        plain = conditioning.streams["text"].tokens
        guidance = Guidance(conditioning, conditioning, conditioning, plain, scales)
        side, channels = config.size // self.codec.factor, self.model.unet.config["in_channels"]
        latents = jax.ShapeDtypeStruct((config.batch_size, side, side, channels), jnp.float32)
        carry = jax.eval_shape(functools.partial(init_carry, plan), latents)
        keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), config.batch_size))
        graphdef, weights = nnx.split(denoiser_module(self.model, self.method))
        scalars = (*options.scalars(calls, per_step), 0, calls)
        inputs = (plan, carry, guidance, keys, scalars)
        return SamplingProgram(sample_steps, (self.method, graphdef), weights, inputs, calls)

    @classmethod
    def validation_sets_of(cls, config: ConfigDict) -> tuple[str, ...]:
        return tuple(name for name in SETS if config[f"validate_{name}"])

    @property
    def trained_against(self) -> tuple[str, ...]:
        """All networks that the method has added: its inputs, and those that its losses run."""
        parts = vars(self.model).items()
        return tuple(n for n, p in parts if isinstance(p, nnx.Module) and n not in COMPONENTS)


def set_remat(model: StableDiffusionXL, remat: bool) -> None:
    """Whether the backward pass recomputes the activations of the UNet and of ControlNets."""
    for part in vars(model).values():
        if isinstance(part, UNetEncoder):
            part.set_remat(remat)


def check_sampler(config: ConfigDict, scheduler_config: dict) -> None:
    """ValueError if images are to be sampled and no sampler supports the base's scheduler."""
    scheduler_config = scheduler_of_run(config, scheduler_config)
    if Sdxl.validation_sets_of(config) or config.sample_every:
        SamplingOptions.of_validation(config).plan(scheduler_config)
