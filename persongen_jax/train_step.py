"""One step of training: what is random in it, the loss, gradients for what is trained, the update.

``train.py`` runs it, ``study_cost`` and ``bench`` measure it, ``aot`` compiles it for machines that
are not there: all of them build it by :func:`build_step`.
"""

import dataclasses
import functools
import time
from typing import Any

import jax
import jax.numpy as jnp
import optax

from persongen_jax import diffusion, flop_count, objective
from persongen_jax.methods.base import drop_condition
from persongen_jax.models.vae import DiagonalGaussianDistribution, scale_latents
from persongen_jax.partition import merge_model
from persongen_jax.sharding import gathered

# ---- The loss ----------------------------------------------------------------------------------

# Each purpose draws from its own stream of random numbers.
LATENTS, NOISE, TIMESTEPS, DROP, FACE, OFFSET = range(6)


def step_key(seed, step, purpose):
    """A key that depends on these three and nothing else, so that a resumed run draws the same."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), step), purpose)


def draw(config, schedule, vae, batch, step) -> dict:
    """What is random in a step, [b, ...] each; drawn for the whole batch, however it is split."""
    key = functools.partial(step_key, config.seed, step)
    shape = latent_shape(vae, batch)
    b, *_, channels = shape
    draws = {
        "latents": jax.random.normal(key(LATENTS), shape),
        "noise": jax.random.normal(key(NOISE), shape),
        "timesteps": jax.random.randint(key(TIMESTEPS), (b,), 0, schedule.num_train_timesteps),
        "drop": jax.random.bernoulli(key(DROP), config.drop_prob, (b,)),
        "face_only": jax.random.bernoulli(key(FACE), config.face_loss_prob, (b,)),
    }
    if config.noise_offset > 0:
        offsets = jax.random.normal(key(OFFSET), (b, 1, 1, channels))
        draws["noise"] = objective.offset_noise(draws["noise"], offsets, config.noise_offset)
    return draws


def latent_shape(vae, batch) -> tuple[int, int, int, int]:
    """(b, h, w, c) of the latents of a batch's targets."""
    if "moments" in batch:
        *shape, channels = batch["moments"].shape
        return (*shape, channels // 2)
    b, height, width, _ = batch["pixel_values"].shape
    factor = vae.vae_scale_factor
    return b, height // factor, width // factor, vae.config["latent_channels"]


def posterior(vae, batch) -> DiagonalGaussianDistribution:
    """The Gaussian over the targets' latents: the batch's own ("moments"), or encoded now."""
    if "moments" in batch:
        return DiagonalGaussianDistribution(*jnp.split(batch["moments"], 2, axis=-1))
    return vae.encode(batch["pixel_values"])


def example_losses(method, schedule, config, empty_ids, model, batch, draws):
    """The noise-prediction loss of every example, [b], and counts for the log."""
    noise, timesteps = draws["noise"], draws["timesteps"]

    moments = posterior(model.vae, batch)
    latents = moments.mean + jnp.exp(0.5 * moments.logvar) * draws["latents"]
    latents = jax.lax.stop_gradient(scale_latents(model.vae, latents))
    noisy = diffusion.add_noise(schedule, latents, noise, timesteps)

    conditioning = method.condition(model, drop_condition(batch, draws["drop"], empty_ids))
    model_pred = model.unet(noisy, timesteps, conditioning)

    cells = latents.shape[1:3]
    image_size = tuple(side * model.vae.vae_scale_factor for side in cells)
    face, fell_back = diffusion.face_box_mask(batch["face_box"], image_size, cells)
    face_only = draws["face_only"]
    mask = jnp.where(face_only[:, None, None], face, 1.0)
    target = diffusion.training_target(schedule, latents, noise, timesteps)
    losses = diffusion.per_example_loss(model_pred, target, mask)
    if config.min_snr_gamma > 0:
        losses *= objective.min_snr_weights(schedule, timesteps, config.min_snr_gamma)
    return losses, {"face_box_fallbacks": (face_only & fell_back).sum()}


# ---- The step: gradients for what is trained, and for nothing else -----------------------------


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class TrainState:
    """What a step changes: float32 arrays by path, the optimizer's state, the running average.

    ``ema`` is empty where no average is kept.
    """

    trainable: dict
    opt_state: Any
    ema: dict

    @classmethod
    def create(cls, trainable: dict, tx, ema_decay: float):
        # Copies: the step takes its arguments' memory, and the model keeps the originals.
        ema = jax.tree.map(jnp.copy, trainable) if ema_decay > 0 else {}
        return cls(jax.tree.map(jnp.copy, trainable), tx.init(trainable), ema)

    @property
    def shown(self) -> dict:
        """What validation sees: the running average if there is one."""
        return self.ema or self.trainable


def make_train_step(losses_of, draw_for, graphdef, tx, *, grad_accum=1, ema_decay=0.0, out=None):
    """step(state, frozen, batch, step) to (state, metrics), jitted; it takes the state's memory.

    Where the loss or the gradient's norm is not finite, the state stays as it was, and
    ``metrics["skipped"]`` is 1.

    Args:
        losses_of: (model, batch, draws) to ([b] losses, counts).
        draw_for: (batch, step) to draws, [b, ...] each.
        grad_accum: the batch is gone through in this many equal parts, one after the other, which
            needs less memory; the gradient is that of the whole batch.
        ema_decay: of :func:`running_average`; 0: none is kept.
        out: the sharding of the results.
    """

    @functools.partial(jax.jit, donate_argnums=0, out_shardings=out)
    def train_step(state, frozen, batch, step):
        def mean_loss(trainable, batch, draws):
            model = merge_model(graphdef, gathered(trainable), frozen)
            losses, counts = losses_of(model, batch, draws)
            return losses.mean(), counts

        gradients = jax.value_and_grad(mean_loss, has_aux=True)
        examples = (batch, draw_for(batch, step))
        if grad_accum == 1:
            (loss, counts), grads = gradients(state.trainable, *examples)
        else:
            (loss, counts), grads = accumulate(gradients, state.trainable, examples, grad_accum)
        updates, opt_state = tx.update(grads, state.opt_state, state.trainable)
        trainable = optax.apply_updates(state.trainable, updates)
        ema = running_average(state.ema, trainable, ema_decay) if ema_decay > 0 else {}
        norm = optax.global_norm(grads)
        good = jnp.isfinite(loss) & jnp.isfinite(norm)
        # A choice for each number, and no branch: it is done where the update is written anyway.
        new = TrainState(trainable, opt_state, ema)
        new = jax.tree.map(lambda a, b: jnp.where(good, a, b), new, state)
        skipped = (~good).astype(jnp.int32)
        return new, {"loss": loss, "grad_norm": norm, "skipped": skipped, **counts}

    return train_step


def build_step(config, model, method, schedule, empty_ids, graphdef, tx, out=None):
    """The jitted step of a config: step(state, frozen, batch, step) to (state, metrics).

    Args:
        model: StableDiffusionXL with the method attached; only its shapes are read here.
        schedule: diffusion.NoiseSchedule of the base.
        empty_ids: [2, 77] int32, the empty prompt's token ids.
        graphdef: of partition.split_model; tx: the optimizer.
        out: the sharding of the results.
    """
    return make_train_step(
        functools.partial(example_losses, method, schedule, config, empty_ids),
        functools.partial(draw, config, schedule, model.vae),
        graphdef,
        tx,
        grad_accum=config.grad_accum,
        ema_decay=config.ema_decay,
        out=out,
    )


def running_average(ema: dict, trainable: dict, decay: float) -> dict:
    """The exponential moving average after one more step."""
    return jax.tree.map(lambda a, b: decay * a + (1 - decay) * b, ema, trainable)


def accumulate(gradients, trainable, examples, parts: int):
    """``gradients(trainable, *examples)`` from ``parts`` equal parts of the examples, in turn.

    Losses and gradients are means over the examples, counts are sums.
    """

    def split(array):
        # Part i has rows i, i + parts, ...: so every device has its share of every part.
        return array.reshape(-1, parts, *array.shape[1:]).swapaxes(0, 1)

    def add(total, part):
        return jax.tree.map(jnp.add, total, gradients(trainable, *part)), None

    split_examples = jax.tree.map(split, examples)
    shapes = jax.eval_shape(gradients, trainable, *jax.tree.map(lambda x: x[0], split_examples))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    ((loss, counts), grads), _ = jax.lax.scan(add, zeros, split_examples)
    return (loss / parts, counts), jax.tree.map(lambda g: g / parts, grads)


class CompiledSteps:
    """A jitted step as one program for each shape of the batch, compiled at its first use.

    Args:
        train_step: step(state, frozen, batch, step).
        shapes: (h, w) of the latents that may come; another is an error and never a compilation.
        latents: of a batch to the (b, h, w, c) of its latents.
        say: called with (number of the program, FLOPs, seconds) after each compilation.
    """

    def __init__(self, train_step, shapes, latents, say=lambda *_: None):
        self._train_step, self._shapes = train_step, set(map(tuple, shapes))
        self._latents, self._say = latents, say
        self._programs: dict[tuple[int, int], tuple] = {}
        self._flops, self._steps = 0.0, 0

    @property
    def compiled(self) -> int:
        """How many programs there are; never more than shapes."""
        return len(self._programs)

    def prepare(self, state, frozen, batch, step):
        """Compiles the batch's program if there is none yet; ValueError for an unknown shape."""
        shape = self._latents(batch)[1:3]
        if shape in self._programs:
            return self._programs[shape]
        if shape not in self._shapes:
            known = ", ".join(f"{h}x{w}" for h, w in sorted(self._shapes))
            raise ValueError(
                f"a batch with latents of {shape[0]}x{shape[1]} (height x width) came; config.size "
                f"or config.buckets give {known}"
            )
        made = compile_step(self._train_step, state, frozen, batch, step)
        self._programs[shape] = made
        self._say(self.compiled, *made[1:])
        return made

    def __call__(self, state, frozen, batch, step):
        program, flops, _ = self.prepare(state, frozen, batch, step)
        self._flops, self._steps = self._flops + flops, self._steps + 1
        return program(state, frozen, batch, step)

    def flops_per_step(self) -> float:
        """The mean over the steps since the last call."""
        flops, self._flops, self._steps = self._flops / max(1, self._steps), 0.0, 0
        return flops


def compile_step(train_step, *arguments):
    """(the compiled program, its floating-point operations, seconds of compiling).

    The program refuses other shapes: nothing that happens later can compile a second one.
    """
    start = time.perf_counter()
    program = train_step.trace(*arguments).lower().compile()
    seconds = time.perf_counter() - start
    return program, flop_count.of_function(train_step, *arguments), seconds
