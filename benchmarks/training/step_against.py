"""The main job's training step, in turns with that of another checkout.

    git worktree add ../before COMMIT
    python -m benchmarks.training.step_against ../before --out benchmarks/results/step.md

Each turn is the command that a user gives, `python -m persongen_jax.train`, in a process of its
own, and its figure the images/s that the training itself logs, without compiling.
"""

import argparse
import datetime
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import jax

from benchmarks.machine import processor
from data_pipeline.cli import command
from data_pipeline.files import write_text
from persongen_jax.evaluation.trajectories import read_rows
from persongen_jax.tables import markdown

CONFIG = "configs/mini/photomaker_bg.py"
STEPS, EVERY = 80, 20  # the first EVERY steps are not counted
HERE = Path(__file__).parents[2]


def images_per_second(tree: Path) -> float:
    """The median over the logged spans of a run of the main job's training in a checkout."""
    with tempfile.TemporaryDirectory() as run:
        options = {"steps": STEPS, "log_every": EVERY, "validation_every": 0}
        words = [f"--config.{name}={value}" for name, value in options.items()]
        subprocess.run(
            [sys.executable, "-m", "persongen_jax.train", "--config", CONFIG, "--workdir", run]
            + words,
            cwd=tree,
            env={**os.environ, "PYTHONPATH": str(tree)},
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        rows = read_rows(Path(run) / "metrics.jsonl")
    return statistics.median(row["images_per_second"] for row in rows if row["step"] > EVERY)


def commit_of(tree: Path) -> str:
    words = ["git", "-C", str(tree), "rev-parse", "--short", "HEAD"]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()


@command
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.training.step_against", description=__doc__.split("\n")[0]
    )
    parser.add_argument("before", type=Path, help="the other checkout")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--out", type=Path, help="a Markdown file for the table")
    args = parser.parse_args(argv)
    trees = {"before": args.before.resolve(), "now": HERE}
    found: dict[str, list[float]] = {name: [] for name in trees}
    for turn in range(args.turns):
        for name, tree in trees.items():
            found[name].append(images_per_second(tree))
            print(f"turn {turn + 1}, {name}: {found[name][-1]:.1f} images/s", flush=True)
    medians = {name: statistics.median(values) for name, values in found.items()}
    rows = [
        [
            f"{name} ({commit_of(tree)})",
            f"{medians[name]:.1f}",
            ", ".join(f"{value:.1f}" for value in found[name]),
            f"{medians[name] / medians['before']:.2f}",
        ]
        for name, tree in trees.items()
    ]
    text = (
        "# The main job's training step\n\n"
        f"`python -m benchmarks.training.step_against`, {datetime.date.today()}, {processor()}, "
        f"jax {jax.__version__}; `{CONFIG}`, {STEPS} steps, {args.turns} turns.\n\n"
        + markdown(["checkout", "images/s, median", "turns", "ratio"], rows)
        + "\n"
    )
    print(text)
    if args.out:
        write_text(args.out, text)


if __name__ == "__main__":
    main()
