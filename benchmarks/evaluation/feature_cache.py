"""The feature cache: a training step with and without it, and the encoders' share of its time.

    python -m benchmarks.evaluation.feature_cache --json benchmarks/results/feature_cache.json
    python -m benchmarks.evaluation.feature_cache --quick  # a smoke test, figures are meaningless

Trains the unchanged config (by default the miniature's main job) in one process with the same
weights, taking turns step by step: with images and prompts, with cached features, and the encoders
alone on the same images and prompts. The time that a step with cached features saves is the
encoders' share; the compiled program's floating-point operations show what is left of them. The
loader's time per batch is reported as well: without the cache it decodes and resizes, with it it
reads.
"""

import argparse
import datetime
import importlib
import json
import os
import statistics
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from data_pipeline.examples.fields import flatten
from persongen_jax.features.cache import open_encoder
from persongen_jax.parallel.sharding import make_mesh
from persongen_jax.systems.assembly import assemble
from persongen_jax.systems.open import open_system
from persongen_jax.systems.sdxl import Sdxl
from persongen_jax.training.step import compile_step


def open_stream(system, **changes):
    """The system's batches with these changes of its config, made in the calling thread."""
    config = system.config.copy_and_resolve_references()
    config.update({"loader": "memory", **changes})
    return Sdxl(config, system.base, system.method).examples(0)


def seconds_of(function) -> float:
    start = time.perf_counter()
    jax.block_until_ready(function())
    return time.perf_counter() - start


class Step:
    """A config's step, repeated on one of its batches."""

    def __init__(self, system, batch):
        parts = assemble(system, make_mesh())
        self.state = parts.state
        self.rest = (parts.frozen, jax.tree.map(jnp.asarray, batch), np.int32(0))
        self.program, self.flops, self.compile_s = compile_step(parts.step, self.state, *self.rest)

    def __call__(self):
        self.state, metrics = self.program(self.state, *self.rest)
        return metrics


def encoders_of(system, batch):
    """(a function that encodes the whole batch, its floating-point operations)."""
    flat, shape, encoders, inputs = flatten(batch), (system.config.size,) * 2, {}, {}
    for field in (field for field in system.fields if field.encoding):
        one = field.input_shape(shape)
        own = [flat[name] for name in field.spec(shape)]
        own = [array.reshape(-1, *one) for array in own if array.shape[1:][-len(one) :] == one]
        inputs[field.name] = jnp.asarray(np.concatenate(own), field.encoding.dtype)
        encoders[field.name] = open_encoder(system.model, field.encoding)
    states = {name: state for name, (_, state) in encoders.items()}

    @jax.jit
    def encode(states, inputs):
        return {k: encoders[k][0](states[k], inputs[k]) for k in inputs}

    program, flops, _ = compile_step(encode, states, inputs)
    return lambda: program(states, inputs), flops


def compare(config, rounds: int, folder: str) -> dict:
    system = open_system(config)
    streams = {"without": open_stream(system), "with": open_stream(system, cache=folder)}
    source = streams["with"].source
    # The first batches' images and references are computed now; the second time they are cached.
    batches = {name: [next(stream) for _ in range(rounds)] for name, stream in streams.items()}
    source.features.flush()
    contenders = {n: Step(system, batches[n][0]) for n in streams}
    encode, encoder_flops = encoders_of(system, batches["without"][0])
    timed = {**contenders, "encoders": encode}
    for function in timed.values():
        seconds_of(function)
    times = {name: [] for name in timed}
    for _ in range(rounds):
        for name, function in timed.items():
            times[name].append(seconds_of(function))

    loading = {}
    for name, changes in (("without", {}), ("with", {"cache": folder})):
        stream = open_stream(system, **changes)
        loading[name] = [seconds_of(lambda s=stream: next(s)) for _ in range(rounds)]
    median = {name: statistics.median(values) for name, values in times.items()}
    flops = {name: step.flops for name, step in contenders.items()}
    saved = flops["without"] - flops["with"]
    return {
        "config": {n: config[n] for n in ("method", "size", "batch_size", "dtype", "vae_dtype")},
        "seconds": {**times, "median": median},
        "images_per_second": {n: config.batch_size / median[n] for n in contenders},
        "speed_up": median["without"] / median["with"],
        "encoders_share_of_time": {
            "before": 1 - median["with"] / median["without"],
            "before, by the encoders alone": median["encoders"] / median["without"],
        },
        "gflop": {n: f / 1e9 for n, f in {**flops, "encoders": encoder_flops}.items()},
        "encoders_share_of_flop": {
            "before": encoder_flops / flops["without"],
            "after": max(0.0, encoder_flops - saved) / flops["with"],
        },
        "loader_seconds_per_batch": {n: statistics.median(v) for n, v in loading.items()},
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="configs.mini.photomaker_bg", help="a module")
    parser.add_argument("--rounds", type=int, default=15, help="steps of each, in turns")
    parser.add_argument("--batch", type=int, default=0, help="rows; 0: the config's")
    parser.add_argument("--quick", action="store_true", help="2 rounds of 2 rows")
    parser.add_argument("--json", type=Path, help="where the figures are written")
    args = parser.parse_args()
    config = importlib.import_module(args.config).get_config()
    config.batch_size = 2 if args.quick else args.batch or config.batch_size
    with tempfile.TemporaryDirectory() as folder:
        figures = compare(config, 2 if args.quick else args.rounds, folder)
    figures["machine"] = {
        "date": datetime.date.today().isoformat(),
        "backend": jax.default_backend(),
        "device": jax.devices()[0].device_kind,
        "cores": os.cpu_count(),
        "jax": version("jax"),
    }
    text = json.dumps(figures, indent=1)
    print(text)
    if args.json:
        args.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
