"""How often the intervals of distances between sets hold the truth, the bootstrap next to ours.

    python -m benchmarks.evaluation.set_coverage --out benchmarks/results/set_coverage.md

Drawn people have a mean of their own, kinds of images another, and images differ; eight numbers an
image, 20 generated and 4 real images of each person, as in a validation. The truth is the mean of
the figure over all trials: FID's with its bias, which depends on the numbers of images.
"""

import argparse
import datetime
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.machine import processor
from data_pipeline.files import write_text
from persongen_jax.cli import command
from persongen_jax.metrics.intervals.jackknife import group_people, jackknife_interval
from persongen_jax.metrics.sets.cmmd import SCALE, gaussian
from persongen_jax.metrics.sets.frechet_clip import frechet_distance
from persongen_jax.metrics.sets.mmd import Kernel, KernelSums, cubic, kernel_sums
from persongen_jax.tables import markdown

DIMS, GENERATED, REAL, PEOPLE = 8, 20, 4, (10, 25)


def draw(rng: np.random.Generator, people: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """(features [n, d], whose [n] from 0) of the generated and of the real images."""
    own = 0.7 * rng.standard_normal((people, DIMS))
    kinds = []
    for count, shift in ((GENERATED, 0.4), (REAL, 0.0)):
        means = own + 0.4 * rng.standard_normal((people, DIMS)) + shift
        whose = np.repeat(np.arange(people), count)
        kinds.append((means[whose] + 0.7 * rng.standard_normal((len(whose), DIMS)), whose))
    return kinds


Kinds = list[tuple[np.ndarray, np.ndarray]]
Figure = Callable[[np.ndarray], float]
"""The figure with each person as often as [people] says: 0 is left out, 2 is drawn twice."""


def fid(kinds: Kinds) -> Figure:
    def figure(times):
        return frechet_distance(*(np.repeat(x, times[whose], axis=0) for x, whose in kinds))

    return figure


def kid(kinds: Kinds) -> Figure:
    sums = people_sums(cubic, kinds)
    return lambda times: taken(sums, times).unbiased()


def cmmd(kinds: Kinds) -> Figure:
    unit = [(x / np.linalg.norm(x, axis=1, keepdims=True), whose) for x, whose in kinds]
    sums = people_sums(gaussian, unit)
    return lambda times: SCALE * taken(sums, times).biased()


def people_sums(kernel: Kernel, kinds: Kinds) -> KernelSums:
    """By people; a person who is drawn twice needs no second look at the images."""
    (a, of_a), (b, of_b) = kinds
    return kernel_sums(kernel, a, b, (of_a, of_b))


def taken(sums: KernelSums, times: np.ndarray) -> KernelSums:
    """The sums with each person so often; equal rows count as different ones, as in a bootstrap."""
    pairs = np.outer(times, times)
    return KernelSums(*(each * (pairs if each.ndim > 1 else times) for each in sums))


FIGURES = {"FID": fid, "KID": kid, "CMMD": cmmd}


def jackknifed(figure: Figure, people: int) -> tuple[float, float] | None:
    groups = group_people(list(map(str, range(people))))
    (own,) = groups.rows

    def without(group):
        return figure((own != group).astype(int))

    return jackknife_interval(figure(np.ones(people, int)), without, groups.people)


def bootstrapped(figure: Figure, people: int, rng, draws: int) -> tuple[float, float]:
    """The percentile interval of people drawn with replacement."""
    drawn = (np.bincount(rng.integers(0, people, people), minlength=people) for _ in range(draws))
    low, high = np.percentile([figure(times) for times in drawn], (2.5, 97.5))
    return low, high


def measure(trials: int, draws: int) -> list[list]:
    """Rows of the table: figure, people, and of ours and of the bootstrap of ``draws`` what each
    held, in percent, and its median width."""
    rows = []
    for name, make in FIGURES.items():
        for people in PEOPLE:
            rng = np.random.default_rng(people)
            values, ours, theirs = [], [], []
            for _ in range(trials):
                figure = make(draw(rng, people))
                values.append(figure(np.ones(people, int)))
                ours.append(jackknifed(figure, people))
                theirs.append(bootstrapped(figure, people, rng, draws))
            truth = float(np.mean(values))
            cells = [shown(np.array(each), truth) for each in (ours, theirs)]
            rows.append([name, people, f"{truth:.3g}", *cells])
    return rows


def shown(limits: np.ndarray, truth: float) -> str:
    """Such as "95.2 (1.48)" of intervals [n, 2]."""
    low, high = limits.T
    return f"{100 * np.mean((low <= truth) & (truth <= high)):.1f} ({np.median(high - low):.3g})"


def page(trials: int, draws: int) -> str:
    started = time.perf_counter()
    head = ["figure", "people", "mean figure", "ours", "percentile bootstrap"]
    table = markdown(head, measure(trials, draws))
    minutes = (time.perf_counter() - started) / 60
    error = 196 * np.sqrt(0.05 * 0.95 / trials)
    return INTRO.format(
        **{"trials": trials, "draws": draws, "minutes": minutes, "error": error},
        **{"dims": DIMS, "generated": GENERATED, "real": REAL},
        **{"day": datetime.date.today(), "processor": processor(), "table": table},
    )


INTRO = """# How often 95 % intervals of FID, KID and CMMD hold the mean figure

`python -m benchmarks.evaluation.set_coverage`, {trials} trials of each row, seeded, \
{minutes:.0f} minutes, {day}, {processor}. Drawn features of {dims} numbers; \
{generated} generated and {real} real images of each person; people, and the two kinds of images, \
have means of their own. Coverage of the mean figure over all trials in percent, in brackets the \
median width; a coverage of 95 % is itself known to ± {error:.1f} points. *Ours* leaves people \
out in turn (persongen_jax/metrics/intervals/jackknife.py); the bootstrap draws people {draws} \
times.

{table}
"""


@command
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.evaluation.set_coverage", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--draws", type=int, default=100, help="of the bootstrap")
    parser.add_argument("--out", type=Path, help="a Markdown file; default: print")
    args = parser.parse_args(argv)
    text = page(args.trials, args.draws)
    if args.out is None:
        print(text)
    else:
        write_text(args.out, text)
        print(f"written: {args.out}")


if __name__ == "__main__":
    main()
