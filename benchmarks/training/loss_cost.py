"""What losses on decoded images cost: BoLID's training step in the miniature, with and without.

    python -m benchmarks.training.loss_cost --out benchmarks/results/loss_cost.md

`configs/mini/bolid.py` without losses, with both of its own, with these decoded at half the side,
and with each loss alone. The steps take turns in one process (persongen_jax/study/cost.py), so that
a slow minute affects all of them alike; a ratio is within a round.
"""

import argparse
import datetime
from pathlib import Path

import jax

from benchmarks.machine import processor
from data_pipeline.cli import command
from data_pipeline.files import write_text
from persongen_jax.bench.device import program_memory
from persongen_jax.config import load_config
from persongen_jax.losses.decoded import LOSSES
from persongen_jax.miniature.__main__ import ASSETS
from persongen_jax.study.cost import MeasuredStep, devices, in_turns
from persongen_jax.tables import markdown

CONFIG = "configs/mini/bolid.py"
# Whose number changes no step; the config's 1000 take longer to open.
DATA = "people:in_train?identities=16&pictures=4"
# The other losses' networks are the config's own.
SAME = {"data": DATA, "loss_face_net": str(ASSETS / "face_net" / "model.safetensors")}
# The first is what the others are compared with. Neither weight nor window changes a cost.
ARMS: dict[str, dict] = {
    "without": {"losses": {}},
    "the config's: keypoints, clip": {},
    "the same, decoded at half the side": {"losses_downscale": 2},
    **{f"{name} alone": {"losses": {name: {"weight": 0.1}}} for name in LOSSES},
}


def measure(rounds: int, steps: int) -> dict[str, dict]:
    """By arm: what ``in_turns`` gives, "compiling_s", "gflop" of a step, "mib" per device."""
    measured = {}
    for arm, own in ARMS.items():
        measured[arm] = one = MeasuredStep(load_config(CONFIG, SAME | own))
        print(f"{arm}: compiled in {one.compiling_s:.0f} s", flush=True)
    return {
        arm: {
            **times,
            "compiling_s": measured[arm].compiling_s,
            "gflop": measured[arm].flops / 1e9,
            "mib": sum(program_memory(measured[arm].program).values()) * 1024,
        }
        for arm, times in in_turns(measured, rounds, steps).items()
    }


def report(found: dict[str, dict], rounds: int, steps: int) -> str:
    rows = [
        [
            arm,
            f"{own['seconds'] * 1e3:.0f}",
            f"{own['relative']:.2f} ({own['low']:.2f} to {own['high']:.2f})",
            f"{own['gflop']:.1f}",
            f"{own['mib']:.0f}",
            f"{own['compiling_s']:.0f}",
        ]
        for arm, own in found.items()
    ]
    batch = load_config(CONFIG, {}).batch_size
    head = ["losses", "ms a step", "times without", "GFLOP a step", "memory, MiB", "compiled in, s"]
    return (
        "# The cost of losses on decoded images\n\n"
        f"`python -m benchmarks.training.loss_cost --rounds {rounds} --steps {steps}`, "
        f"{datetime.date.today()}, {processor()}, jax {jax.__version__}; `{CONFIG}`, {batch} "
        f"images a step on {devices()}.\n\n"
        + markdown(head, rows)
        + f"\n\nTimes: medians over {rounds} rounds of {steps} steps each, in turns; in brackets "
        "the least and the largest ratio of a round. Memory: what XLA plans for a step, per "
        "device: weights, optimizer, batch and temporaries. `reconstruction` has no network, so "
        "that its row is the decoder alone. Compiling includes tracing.\n"
    )


@command
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.training.loss_cost", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--rounds", type=int, default=7, help="default: 7")
    parser.add_argument("--steps", type=int, default=5, help="of a turn (default: 5)")
    parser.add_argument("--out", type=Path, help="a Markdown file for the table")
    args = parser.parse_args(argv)
    for name in ("rounds", "steps"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name} {getattr(args, name)}: at least 1")
    # As training does, and before anything asks for the devices.
    jax.config.update("jax_num_cpu_devices", load_config(CONFIG, {}).cpu_devices)
    text = report(measure(args.rounds, args.steps), args.rounds, args.steps)
    print(text)
    if args.out:
        write_text(args.out, text)


if __name__ == "__main__":
    main()
