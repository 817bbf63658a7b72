"""The training step as ``train.py`` compiles it, on weights and a batch drawn on the device."""

import functools
import time

import jax
import jax.numpy as jnp
import numpy as np

from persongen_jax.bench_device import (
    at_the_end,
    check_finite,
    describe_device,
    program_memory,
)
from persongen_jax.bench_model import VOCABULARY, random_batch, random_model, shapes_only
from persongen_jax.diffusion import NoiseSchedule
from persongen_jax.flop_count import of_function
from persongen_jax.models.platform import attention_by
from persongen_jax.partition import make_optimizer, split_model, split_shapes
from persongen_jax.sharding import (
    along_batch,
    frozen_shardings,
    make_mesh,
    put,
    replicated,
    state_shardings,
)
from persongen_jax.train_step import TrainState, build_step, compile_step
from persongen_jax.weights.random_base import SCHEDULER


def empty_ids() -> np.ndarray:
    """[2, 77] int32, what stands for the empty prompt."""
    ids = np.zeros((2, 77), np.int32)
    ids[:, -1] = VOCABULARY - 1
    return ids


class TrainRow:
    """One setting of the step.

    Args:
        config: a training's config; nothing of it is opened.
        cached: whether the batch holds what the feature cache stores.
        attention: "auto" or "xla", see :func:`attention_by`.
    """

    def __init__(self, config, *, cached: bool, attention: str):
        self.device = describe_device()  # while its memory is free
        mesh = make_mesh(fsdp=config.fsdp)
        model, method = random_model(config)
        table = config.trainable or method.groups
        graphdef, trainable, frozen, groups = split_model(model, table)
        tx = make_optimizer(config, groups)
        schedule = NoiseSchedule.from_config(SCHEDULER)
        create = functools.partial(TrainState.create, tx=tx, ema_decay=config.ema_decay)
        places = state_shardings(mesh, config, jax.eval_shape(create, trainable))
        self.state = jax.jit(create, out_shardings=places)(put(trainable, places.trainable))
        self.frozen = put(frozen, frozen_shardings(mesh, config, frozen))
        batch = random_batch(config, model, method, cached)
        self.batch = put(batch, along_batch(mesh))
        parts = (model, method, schedule, empty_ids(), graphdef, tx)
        step = build_step(config, *parts, out=(places, replicated(mesh)))
        del model, trainable, frozen, batch, parts
        with jax.set_mesh(mesh), attention_by(attention):
            arguments = (self.state, self.frozen, self.batch, np.int32(0))
            self.program, _, self.compile_s = compile_step(step, *arguments)
        self.done = 0

    def prepare(self) -> dict:
        """Run once, and tell of the program and the device."""
        first = self.run(1)
        return {
            **self.device,
            "trained": int(sum(x.size for x in self.state.trainable.values())),
            "compile_s": self.compile_s,
            "first_s": first["seconds"],
            "program_gib": program_memory(self.program),
        }

    def run(self, steps: int) -> dict:
        """Seconds of so many steps, and the last one's loss."""
        start = time.perf_counter()
        for _ in range(steps):
            arguments = (self.state, self.frozen, self.batch, np.int32(self.done))
            self.state, metrics = self.program(*arguments)
            self.done += 1
        loss = float(metrics["loss"])
        seconds = time.perf_counter() - start
        check_finite(loss)
        return {"seconds": seconds, "loss": loss}

    def finish(self) -> dict:
        return at_the_end()


def step_flops(config, *, cached: bool) -> tuple[int, int]:
    """(floating-point operations of a step per picture, parameters that it trains).

    Of the plain step: what remat computes again is work for the device, but none of the model's.
    """
    config = config.copy_and_resolve_references()
    config.batch_size = config.grad_accum = 1
    config.remat = False
    model, method = shapes_only(config)
    graphdef, trainable, frozen, groups = split_shapes(model, config.trainable or method.groups)
    tx = make_optimizer(config, groups)
    state = jax.eval_shape(lambda x: TrainState.create(x, tx, config.ema_decay), trainable)
    batch = jax.eval_shape(lambda: random_batch(config, model, method, cached))
    schedule = NoiseSchedule.from_config(SCHEDULER)
    step = build_step(config, model, method, schedule, empty_ids(), graphdef, tx)
    flops = of_function(step, state, frozen, batch, jax.ShapeDtypeStruct((), jnp.int32))
    return flops, sum(x.size for x in trainable.values())
