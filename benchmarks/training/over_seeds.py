"""What benchmarks share that train the same arms with several seeds and compare them in pairs."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.files import write_text
from persongen_jax.metrics.intervals.limits import Bounds
from persongen_jax.metrics.intervals.people import Interval
from persongen_jax.metrics.intervals.runs import over_people_and_runs


def over_seeds(
    argv: list[str] | None,
    name: str,
    summary: str,
    of_seed: Callable[[int, Path, list[str]], Any],
    report: Callable[[dict[int, Any], list[str]], str],
) -> None:
    """The command ``benchmarks.training.NAME``: every seed in turn, then the report.

    Args:
        of_seed: (seed, folder of the runs, options of all trainings) to what was measured; it
            repeats nothing that is complete.
        report: of what was measured by seed, and the options.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.training.{name}", description=summary
    )
    default = Path("runs") / name
    parser.add_argument("--work", type=Path, default=default, help="folder of the runs")
    parser.add_argument("--seeds", type=int, default=3, help="0, 1, … this many (default: 3)")
    parser.add_argument("--out", type=Path, help="a Markdown file for the tables")
    args, options = parser.parse_known_args(argv)
    if args.seeds < 1:
        raise ValueError(f"--seeds {args.seeds}: at least 1")
    found = {}
    for seed in range(args.seeds):
        found[seed] = of_seed(seed, args.work.resolve(), options)
        print(f"seed {seed}: done", flush=True)
    text = report(found, options)
    print(text)
    if args.out:
        write_text(args.out, text)


def done(run: Path) -> bool:
    """Whether its last step is saved."""
    file = run / "config.json"
    return file.exists() and (run / f"checkpoints/{json.loads(file.read_text())['steps']}").is_dir()


def difference(with_it: list[dict], without: list[dict]) -> Interval:
    """Over people and seeds: the mean difference of each person's means."""
    names = sorted(set.intersection(*(set(m["people"]) for m in (*with_it, *without))))
    cells = [
        [one["people"][name][0] - two["people"][name][0] for name in names]
        for one, two in zip(with_it, without, strict=True)
    ]
    bounds: Bounds = None
    return over_people_and_runs(np.array(cells), np.ones((len(cells), len(names))), bounds)


def verdict(metric: str, found: Interval) -> str:
    """Whether the row with it is better or worse than the one without, or neither can be said."""
    if found.low is None or found.low <= 0 <= found.high:
        return "open"
    better = found.mean < 0 if metric.endswith("error") else found.mean > 0
    return "better" if better else "worse"
