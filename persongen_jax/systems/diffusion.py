"""What all diffusion systems share: noise, target, loss per example, and sampling."""

import abc
import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import ArrayLike
from ml_collections import ConfigDict

from data_pipeline.examples.fields import Batch, Field, flatten, unflatten
from persongen_jax.diffusion.conditioning import deinterleave, interleave
from persongen_jax.diffusion.objective import (
    check_objective,
    debiased_weights,
    draw_timesteps,
    error_of,
    min_snr_weights,
    offset_noise,
    per_example_loss,
    set_objective_defaults,
    x0_factors,
)
from persongen_jax.diffusion.options import SamplingOptions
from persongen_jax.diffusion.plan import Plan
from persongen_jax.diffusion.samplers import (
    final_latents,
    guide,
    init_carry,
    initial_latents,
    run_steps,
)
from persongen_jax.diffusion.schedule import (
    NoiseSchedule,
    add_noise,
    signal_and_noise,
    training_target,
    x0_and_eps,
)
from persongen_jax.models.sdxl.vae import (
    AutoencoderKL,
    DiagonalGaussianDistribution,
    decode_images,
    scale_latents,
)
from persongen_jax.parallel.sharding import batch_sharding, make_mesh, put_array
from persongen_jax.systems.base import SamplingProgram, System
from persongen_jax.systems.dropping import dropped_alone

# Purposes of random keys; each draws from its own stream.
LATENTS, NOISE, TIMESTEPS, DROP, FACE, OFFSET, OWN_DROP, ALONE_DROP = range(8)


# ---- Codecs: the space that the diffusion runs in ------------------------------------------------
#
# A codec takes the model as an argument, so that its weights are the model's. Input images are
# float in [-1, 1], output images in 0..1.


class Pixels:
    """The diffusion runs on the pixels; any number of channels.

    Args:
        channels: of an image.
    """

    factor = 1  # side of an image in pixels over side of its latents

    def __init__(self, channels: int = 3):
        self.channels = channels

    def shape(self, model: Any, batch: Batch) -> tuple[int, int, int, int]:
        """(b, h, w, c) of the latents of a batch's targets."""
        return batch["pixel_values"].shape

    def latents(self, model: Any, batch: Batch, noise: jax.Array) -> jax.Array:
        """[b, h, w, c] of the targets; ``noise`` is not needed here."""
        return batch["pixel_values"].astype(jnp.float32)

    def decode(self, model: Any, latents: jax.Array) -> jax.Array:
        """Images [b, h, w, c] float32 in 0..1, clipped."""
        return jnp.clip(latents / 2 + 0.5, 0, 1)


class VAE:
    """The diffusion runs on the latents of ``model.vae`` (arXiv 2112.10752, section 3.1)."""

    def __init__(self, vae: AutoencoderKL):
        self.factor, self.channels = vae.vae_scale_factor, vae.config["latent_channels"]

    def shape(self, model: Any, batch: Batch) -> tuple[int, int, int, int]:
        """(b, h, w, c) of the latents of a batch's targets."""
        if "moments" in batch:
            *shape, channels = batch["moments"].shape
            return (*shape, channels // 2)
        b, height, width, _ = batch["pixel_values"].shape
        return b, height // self.factor, width // self.factor, self.channels

    def latents(self, model: Any, batch: Batch, noise: jax.Array) -> jax.Array:
        """[b, h, w, c] drawn from the targets' posterior and scaled; stops gradients.

        Args:
            batch: "pixel_values", or the "moments" of the posterior.
            noise: [b, h, w, c] standard normal.
        """
        moments = self._posterior(model.vae, batch)
        latents = moments.mean + jnp.exp(0.5 * moments.logvar) * noise
        return jax.lax.stop_gradient(scale_latents(model.vae, latents))

    @staticmethod
    def _posterior(vae, batch) -> DiagonalGaussianDistribution:
        if "moments" in batch:
            return DiagonalGaussianDistribution(*jnp.split(batch["moments"], 2, axis=-1))
        return vae.encode(batch["pixel_values"])

    def decode(self, model: Any, latents: jax.Array) -> jax.Array:
        """Images [b, h, w, 3] float32 in 0..1, clipped; differentiable."""
        return decode_images(model.vae, latents)


# ---- The system --------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Step:
    """The inputs of a method's or system's losses.

    Attributes:
        mse: [b] the denoising loss, masked and weighted as the config says.
        pred, target: [b, h, w, c]; the model's prediction, and its target.
        latents, noisy: [b, h, w, c] clean, and at ``timesteps`` [b].
        mask: [b, h, w] or None, the part of the image that the loss counts.
        decode: maps latents to images [b, H, W, C] in 0..1.
        drop: [b] bool, where the prediction had no condition; None: nowhere.
    """

    mse: jax.Array
    pred: jax.Array
    target: jax.Array
    latents: jax.Array
    noisy: jax.Array
    timesteps: jax.Array
    mask: jax.Array | None
    schedule: NoiseSchedule
    decode: Callable
    drop: jax.Array | None = None

    def x0(self) -> jax.Array:
        """The clean latents implied by the prediction, [b, h, w, c] float32."""
        alpha, sigma = signal_and_noise(self.schedule, self.timesteps)
        prediction = self.schedule.prediction_type
        return x0_and_eps(prediction, self.noisy, self.pred, alpha, sigma)[0]

    def image(self) -> jax.Array:
        """``x0`` decoded, [b, H, W, C] float32 in 0..1; differentiable."""
        return self.decode(self.x0())


@dataclasses.dataclass
class Cases:
    """What one set asks for.

    Attributes:
        batch: the fields that a condition is made of, [n, ...] each, nested as a batch is.
        owners: [n], what each image is of (a class, a combination of attributes): the unit that
            intervals resample.
        real: real pictures by owner, uint8 [h, w] or [h, w, c], for metrics that compare.
        texts: [n], what was asked for in words, or None.
    """

    batch: dict
    owners: Sequence[str]
    real: dict[str, Sequence[np.ndarray]]
    texts: Sequence[str] | None = None


class DiffusionSystem(System):
    """A model that predicts noise, v, or the clean image.

    Attributes:
        scheduler_config: diffusers' scheduler_config.json, for schedule and sampler.
        schedule: NoiseSchedule.
        codec: Pixels or VAE.
        fields: of an example; see data_pipeline/examples/fields.py. Each defines its value for a
            dropped condition (``config.drop_prob``).
    """

    evaluation = "persongen_jax.evaluation.sampled:SampledEvaluation"

    scheduler_config: dict
    schedule: NoiseSchedule
    codec: Pixels | VAE

    @classmethod
    def defaults(cls) -> ConfigDict:
        config = super().defaults()
        config.drop_prob = 0.1  # per example: drop the whole condition
        set_objective_defaults(config)
        config.validation_guidance = 2.0  # of classifier-free guidance; a scale of 1 or less: none
        config.validation_guidance_form = "scale"  # or "weight": SamplingOptions.guidance_form
        config.validation_scheduler = ""  # a sampler's name; "": the system's own
        return config

    @abc.abstractmethod
    def condition(self, model: Any, batch: Batch) -> Any:
        """What ``denoise`` reads other than latents and timestep, made from a batch; a pytree."""

    @abc.abstractmethod
    def denoise(
        self, model: Any, x: jax.Array, t: ArrayLike, condition: Any, step: ArrayLike | None = None
    ) -> jax.Array:
        """The prediction [b, h, w, c] at ``x`` [b, h, w, c] and timesteps ``t`` ([b] or one)."""

    def drop(self, batch: Batch, drop: jax.Array, own: dict[str, jax.Array] | None = None) -> Batch:
        """The batch without its condition where ``drop`` [b] is True.

        Args:
            own: the same by name for fields that are dropped on their own; others of these stay.
        """
        return drop_conditions(self.fields, batch, drop, own)

    # ---- training ----

    def check_objective(self) -> None:
        """ValueError unless the objective suits the schedule and does not contradict itself."""
        check_objective(self.config, self.schedule)

    def draw(self, key_of: Callable[[int], jax.Array], batch: Batch) -> dict[str, jax.Array]:
        """ "latents", "noise" [b, h, w, c], "timesteps", "drop" [b], and "drop/NAME" [b] for
        fields that are dropped on their own, or alone as well as with the whole condition."""
        config, shape = self.config, self.codec.shape(self.model, batch)
        b, *_, channels = shape
        draws = {
            "latents": jax.random.normal(key_of(LATENTS), shape),
            "noise": jax.random.normal(key_of(NOISE), shape),
            "timesteps": draw_timesteps(key_of(TIMESTEPS), b, config, self.schedule),
            "drop": jax.random.bernoulli(key_of(DROP), config.drop_prob, (b,)),
        }
        for number, each in enumerate(self.fields):
            if each.drop_prob is not None:
                key = jax.random.fold_in(key_of(OWN_DROP), number)
                draws[f"drop/{each.name}"] = jax.random.bernoulli(key, each.drop_prob, (b,))
        alone = {each.name: each.alone_drop_prob for each in self.fields if each.alone_drop_prob}
        if alone:
            draws |= dropped_alone(key_of(ALONE_DROP), draws["drop"], config.drop_prob, alone)
        if config.noise_offset > 0:
            offsets = jax.random.normal(key_of(OFFSET), (b, 1, 1, channels))
            draws["noise"] = offset_noise(draws["noise"], offsets, config.noise_offset)
        return draws

    def losses(self, model: Any, batch: Batch, draws: dict[str, jax.Array]) -> dict[str, jax.Array]:
        noise, timesteps = draws["noise"], draws["timesteps"]
        latents = self.codec.latents(model, batch, draws["latents"])
        noisy = add_noise(self.schedule, latents, noise, timesteps)
        own = {n.removeprefix("drop/"): d for n, d in draws.items() if n.startswith("drop/")}
        condition = self.condition(model, self.drop(batch, draws["drop"], own))
        pred = self.denoise(model, noisy, timesteps, condition)

        mask, told = self.mask(batch, draws, latents.shape)
        target = training_target(self.schedule, latents, noise, timesteps)
        error = error_of(self.config, self.schedule, timesteps)
        mse = per_example_loss(pred, target, mask, error)
        if self.config.x0_weighting:
            mse *= x0_factors(self.schedule, timesteps, self.config.x0_weighting)
        if self.config.min_snr_gamma > 0:
            mse *= min_snr_weights(self.schedule, timesteps, self.config.min_snr_gamma)
        if self.config.debiased_weights:
            mse *= debiased_weights(self.schedule, timesteps)
        decode = functools.partial(self.codec.decode, model)
        parts = (pred, target, latents, noisy, timesteps, mask, self.schedule, decode)
        losses = self.terms(model, batch, Step(mse, *parts, drop=draws["drop"]))
        if "example_weight" in batch:
            losses = {**losses, "loss": losses["loss"] * batch["example_weight"]}
        return {**losses, **told}

    def mask(
        self, batch: Batch, draws: dict[str, jax.Array], shape: tuple[int, ...]
    ) -> tuple[jax.Array | None, dict[str, jax.Array]]:
        """(weights [b, h, w] of the latent cells or None, additional numbers [b] for the log)."""
        return None, {}

    def terms(self, model: Any, batch: Batch, step: Step) -> dict[str, jax.Array]:
        """{"loss": [b], additional terms [b] for the log}."""
        return {"loss": step.mse}

    # ---- sampling ----

    def cases(self, name: str) -> Cases:
        """What a validation samples on the set ``name``: a Cases."""
        raise ValueError(f"{self.label} has no validation set {name!r}")

    def plan(self, options: SamplingOptions) -> Plan:
        """The sampler's numbers."""
        return options.plan(self.scheduler_config)

    def denoiser(self, model: Any, inputs: dict) -> Callable:
        """(x [b, h, w, c], t, step) to the prediction, for samplers.run_steps.

        Args:
            inputs: "batch", the condition's fields [b, ...]; "guidance", the classifier-free
                guidance scale (arXiv 2207.12598), a number that may be traced; None or absent: no
                guidance, for half the cost.
        """
        batch, guidance = inputs["batch"], inputs.get("guidance")
        condition = self.condition(model, batch)
        if guidance is None:
            return lambda x, t, step: self.denoise(model, x, t, condition, step)
        rows = next(iter(jax.tree.leaves(batch))).shape[0]
        nothing = self.condition(model, self.drop(batch, jnp.ones(rows, bool)))
        both = interleave(nothing, condition)

        def predict(x, t, step):
            out = self.denoise(model, interleave(x, x), t, both, step)
            without, with_it = deinterleave(out, 2)
            return guide(with_it, without, guidance)

        return predict

    def sample(
        self, model: nnx.Module, inputs: dict, noise: jax.Array, plan: Plan, key: jax.Array | None
    ) -> jax.Array:
        """Images [b, H, W, C] float32 in 0..1, one compiled program per shape and plan.

        Rows are distributed over all devices if their number is divisible.

        Args:
            inputs: as ``denoiser``'s.
            noise: [b, h, w, c] standard normal.
            plan: plan.Plan; key: a random key, for stochastic samplers.
        """
        graphdef, state = nnx.split(model)
        mesh, rows = make_mesh(), noise.shape[0]
        if rows % mesh.size:
            return _sample(self, graphdef, state, inputs, noise, plan, key)
        spread = functools.partial(put_array, sharding=batch_sharding(mesh))
        inputs = {**inputs, "batch": jax.tree.map(spread, inputs["batch"])}
        if key is not None and key.shape:
            key = spread(key)
        with jax.set_mesh(mesh):
            return _sample(self, graphdef, state, inputs, spread(noise), plan, key)

    def sampling_program(self, steps: int) -> SamplingProgram:
        batch = self.abstract_batch()
        noise = jax.ShapeDtypeStruct(self.codec.shape(self.model, flatten(batch)), jnp.float32)
        graphdef, weights = nnx.split(self.model)
        plan = self.plan(SamplingOptions(num_inference_steps=steps))
        inputs = ({"batch": batch, "guidance": 5.0}, noise, plan, jax.random.key(0))
        return SamplingProgram(_sample, (self, graphdef), weights, inputs)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _sample(system, graphdef, state, inputs, noise, plan, key):
    model = nnx.merge(graphdef, state)
    carry = init_carry(plan, initial_latents(plan, noise))
    predict = system.denoiser(model, inputs)
    carry = run_steps(plan, predict, carry, key, 0, plan.num_steps)
    return system.codec.decode(model, final_latents(carry))


def drop_conditions(
    fields: Iterable[Field],
    batch: Batch,
    drop: jax.Array,
    own: dict[str, jax.Array] | None = None,
) -> Batch:
    """Replace every field by its value without a condition where ``drop`` [b] is True.

    Args:
        own: the same by name for fields with a ``drop_prob`` of their own, and for those that are
            dropped alone as well.
    """
    flat, own = flatten(batch), own or {}
    out = dict(flat)
    for field in fields:
        here = own.get(field.name, drop if field.drop_prob is None else None)
        if here is None:
            continue
        for name, nothing in field.dropped(flat, jnp).items():
            where = here.reshape(here.shape + (1,) * (flat[name].ndim - 1))
            out[name] = jnp.where(where, nothing, flat[name])
    return unflatten(out)
