"""The training step as ``train.py`` compiles it, on random weights and a random batch."""

import time

import jax
import numpy as np
from ml_collections import ConfigDict

from persongen_jax.bench.device import check_finite, describe_device, final_figures, program_memory
from persongen_jax.models.platform import attention_by
from persongen_jax.parallel.sharding import batch_sharding, make_mesh, put
from persongen_jax.systems.assembly import assemble, step_spec
from persongen_jax.systems.drawn_weights import with_random_weights
from persongen_jax.systems.open import abstract_system
from persongen_jax.training.flop_count import of_function
from persongen_jax.training.step import compile_step


class TrainRow:
    """One setting of the step.

    Args:
        config: a training config; none of its paths is opened.
        cached: whether the batch holds what the feature cache stores.
        attention: "auto" or "xla", see :func:`attention_by`.
    """

    def __init__(self, config: ConfigDict, *, cached: bool, attention: str):
        self.device = describe_device()  # before it allocates memory
        mesh = make_mesh(fsdp=config.fsdp)
        # All weights are on the devices, including those that this step does not read.
        system = abstract_system(ConfigDict({**config, "offload_encoders": False}))
        self.batch = put(system.random_batch(cached), batch_sharding(mesh))
        system.model = with_random_weights(system.model)
        parts = assemble(system, mesh)
        self.state, self.frozen = parts.state, parts.frozen
        step = parts.step
        del system, parts
        with jax.set_mesh(mesh), attention_by(attention):
            arguments = (self.state, self.frozen, self.batch, np.int32(0))
            self.program, _, self.compile_s = compile_step(step, *arguments)
        self.done = 0

    def prepare(self) -> dict:
        """Run once, and describe the program and the device."""
        first = self.run(1)
        return {
            **self.device,
            "trained": int(sum(x.size for x in self.state.trainable.values())),
            "compile_s": self.compile_s,
            "first_s": first["seconds"],
            "program_gib": program_memory(self.program),
        }

    def run(self, steps: int) -> dict:
        """The seconds of this many steps, and the last one's loss."""
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
        return final_figures()


def step_flops(config: ConfigDict, *, cached: bool) -> tuple[int, int]:
    """(floating-point operations of a step per image, number of trained parameters).

    For the plain step: what remat recomputes is work for the device, but not the model's.
    """
    config = config.copy_and_resolve_references()
    config.batch_size = config.grad_accum = 1
    config.remat = False
    system = abstract_system(config)
    parts = assemble(system, make_mesh(jax.devices()[:1]), cached=cached)
    batch = system.abstract_batch(cached)
    flops = of_function(parts.step, parts.state, parts.frozen, batch, step_spec(parts.mesh))
    return flops, sum(x.size for x in parts.state.trainable.values())
