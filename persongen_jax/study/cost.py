"""The cost of each method's step: measured in turns, in one process, on equal batches.

    python -m persongen_jax.study.cost PLAN OUT

``persongen_jax.study`` writes the plan and starts this. Taking turns makes the figures comparable
on a shared machine: a slow minute affects all methods alike, and only the ratios within a round are
kept.
"""

import argparse
import time
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from data_pipeline.text_files import read_json
from persongen_jax.cli import command
from persongen_jax.config import load_config
from persongen_jax.parallel.sharding import make_mesh, put_batch
from persongen_jax.systems.assembly import assemble
from persongen_jax.systems.open import abstract_system, open_system
from persongen_jax.training.step import compile_step
from persongen_jax.weights.saver import write_json


def measure(plan: dict) -> dict:
    """The contents of cost.json.

    Returns:
        {"plan": as given, "device": …, "methods": {name: {"trained": {group: parameters}, "frozen":
        parameters, "gflop": of a step, and what ``in_turns`` gives, "full_size": {group:
        parameters} or None}}}.
    """
    own = {"data": plan["data"]} if plan["data"] else {}
    methods = {}
    for name in plan["order"]:
        file, overrides = plan["methods"][name]
        methods[name] = MeasuredStep(load_config(file, overrides | own))
        print(f"{name}: {sum(methods[name].trained.values()):,} trained", flush=True)
    times = in_turns(methods, plan["rounds"], plan["steps"])
    files = plan["full_size_files"]
    out = {
        name: {
            "trained": method.trained,
            "frozen": method.frozen_count,
            "gflop": method.flops / 1e9,
            **times[name],
            "full_size": count_trained(files[name]) if name in files else None,
        }
        for name, method in methods.items()
    }
    return {"plan": plan, "device": devices(), "methods": out}


def devices() -> str:
    """How many of which kind."""
    return f"{len(jax.devices())} x {jax.devices()[0].device_kind}"


class MeasuredStep:
    """A config's training step, compiled, with a batch and a state of its own.

    Attributes:
        trained: parameters by learning-rate group; frozen_count: of the others.
        program: the compiled step; compiling_s: the seconds that compiling it took.
        flops: of a step.
    """

    def __init__(self, config: ConfigDict):
        mesh = make_mesh()
        system = open_system(config, mesh)
        parts = assemble(system, mesh)
        self.trained = parts.counts()
        self.frozen_count = self.trained.pop("frozen")
        self.state, self.frozen = parts.state, parts.frozen
        self.batch = put_batch(mesh, next(iter(system.examples(0))))
        with jax.set_mesh(mesh):
            arguments = (self.state, self.frozen, self.batch, np.int32(0))
            self.program, self.flops, self.compiling_s = compile_step(parts.step, *arguments)

    def run(self, steps: int) -> float:
        """The seconds that this many steps take."""
        start = time.perf_counter()
        for i in range(steps):
            self.state, metrics = self.program(self.state, self.frozen, self.batch, np.int32(i))
        jax.block_until_ready((self.state, metrics))
        return time.perf_counter() - start


def in_turns(measured: Mapping[str, MeasuredStep], rounds: int, steps: int) -> dict[str, dict]:
    """In each of the rounds, this many steps of each, after one that warms up.

    Returns:
        {name: {"seconds": median of a step, "relative": median over the rounds of its time as a
        multiple of the first one's, "low", "high": their minimum and maximum}}.
    """
    for one in measured.values():
        one.run(1)
    seconds: dict[str, list[float]] = {name: [] for name in measured}
    for _ in range(rounds):
        for name, one in measured.items():
            seconds[name].append(one.run(steps) / steps)
    first = np.array(next(iter(seconds.values())))
    quotients = {name: np.array(own) / first for name, own in seconds.items()}
    return {
        name: {
            "seconds": float(np.median(seconds[name])),
            "relative": float(np.median(own)),
            "low": float(own.min()),
            "high": float(own.max()),
        }
        for name, own in quotients.items()
    }


def count_trained(file: str) -> dict[str, int]:
    """Learning-rate group -> number of parameters that a full-size config trains.

    Its initial weights do not change sizes and are left out.
    """
    config = load_config(file, {"dtype": "bfloat16"})
    counts = assemble(abstract_system(config), make_mesh(jax.devices()[:1])).counts()
    return {group: n for group, n in counts.items() if group != "frozen"}


@command
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("plan", type=Path, help="written by persongen_jax.study")
    parser.add_argument("out", type=Path, help="the file to write")
    args = parser.parse_args(argv)
    write_json(args.out, measure(read_json(args.plan)))


if __name__ == "__main__":
    main()
