"""Does the main job learn identity with every seed?

    python -m benchmarks.training.seeds --work runs/seeds --out benchmarks/results/seeds.md

runs `python -m persongen_jax.train` on the main job's config from nothing, once per seed, and reads
Face-Sim on strangers. A run that is complete is not repeated: the command can be stopped. Options
that it does not know, such as --config.lr_lora=1e-3, are passed on.
"""

import argparse
import datetime
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax

from benchmarks.machine import processor
from data_pipeline.cli import command
from data_pipeline.files import write_text
from persongen_jax.evaluation.trajectories import read_rows
from persongen_jax.tables import markdown

CONFIG = "configs/mini/photomaker_bg.py"
TAKEN_OFF = 0.15  # Face-Sim; strangers' faces are at 0.00, give or take 0.05
HERE = Path(__file__).parents[2]


def face_sims(seed: int, work: Path, options: list[str]) -> dict[int, dict]:
    """{step: {"mean", "low", "high"}} of Face-Sim on strangers."""
    run = work / str(seed)
    rows = run / "validation" / "metrics.jsonl"
    words = [f"--config.seed={seed}", "--config.validation_every=100", *options]
    words += ["--config.validate_in_train=", "--config.validate_out_of_domain="]
    words += ['--config.metrics=("face_sim",)']
    run_training(CONFIG, run, work / f"{seed}.log", words)
    if not rows.exists():
        raise ValueError(f"seed {seed} was not validated; its output is in {work / f'{seed}.log'}")
    return {row["step"]: row["metrics"]["face_sim"] for row in read_rows(rows)}


def run_training(config: str, workdir: Path, log: Path, options: list[str]) -> None:
    """`python -m persongen_jax.train` in a process of its own, which writes to ``log``.

    Raises:
        ValueError: it did not end well.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    paths = str(HERE), os.environ.get("PYTHONPATH")
    with open(log, "a") as file:
        ended = subprocess.run(
            [sys.executable, "-m", "persongen_jax.train", "--config", config]
            + ["--workdir", str(workdir), *options],
            cwd=HERE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
            stdout=file,
            stderr=file,
        )
    if ended.returncode:
        raise ValueError(f"the training in {workdir} did not end well; its output is in {log}")


@command
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.training.seeds", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--work", type=Path, default=Path("runs/seeds"), help="folder of the runs")
    parser.add_argument("--seeds", type=int, default=10, help="0, 1, … this many (default: 10)")
    parser.add_argument("--at-once", type=int, default=1, help="runs, of a CPU each (default: 1)")
    parser.add_argument("--out", type=Path, help="a Markdown file for the table")
    args, options = parser.parse_known_args(argv)
    for name, number in (("--seeds", args.seeds), ("--at-once", args.at_once)):
        if number < 1:
            raise ValueError(f"{name} {number}: at least 1")
    if args.at_once > 1:  # a device each
        options = [*options, "--config.cpu_devices=1"]

    def run(seed):
        found = face_sims(seed, args.work.resolve(), options)
        told = ", ".join(f"{step}: {mean_of(m):.2f}" for step, m in found.items())
        print(f"seed {seed}: {told}", flush=True)
        return found

    with ThreadPoolExecutor(args.at_once) as pool:
        found = dict(enumerate(pool.map(run, range(args.seeds))))
    steps = sorted(found[0])
    images = found[0][steps[-1]]["n"] + found[0][steps[-1]].get("missing", 0)
    rows = [
        [seed, *(f"{mean_of(own[step]):.2f}" for step in steps), first_above(own)]
        for seed, own in found.items()
    ]
    last = [mean_of(own[steps[-1]]) for own in found.values()]
    text = (
        "# The main job with one seed after another\n\n"
        f"`python -m benchmarks.training.seeds {' '.join(options)}`".replace(" `", "`")
        + f", {datetime.date.today()}, {processor()}, jax {jax.__version__}; `{CONFIG}`. Face-Sim "
        f"on strangers ({images} images) after so many steps, and the first validation with "
        f"{TAKEN_OFF} or more.\n\n"
        + markdown(["seed", *map(str, steps), "taken off"], rows)
        + f"\n\nAfter {steps[-1]} steps: least {min(last):.2f}, mean {sum(last) / len(last):.2f}.\n"
    )
    print(text)
    if args.out:
        write_text(args.out, text)


def mean_of(measure: dict) -> float:
    """NaN where no face was found in any image."""
    return float("nan") if measure["mean"] is None else measure["mean"]


def first_above(own: dict[int, dict]) -> str:
    """The first step with TAKEN_OFF or more."""
    return next((str(step) for step, m in sorted(own.items()) if mean_of(m) >= TAKEN_OFF), "not")


if __name__ == "__main__":
    main()
