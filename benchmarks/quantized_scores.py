"""What 8 bits do to likeness and prompts: the miniature's shipped adapter on strangers.

    python -m benchmarks.quantized_scores --out benchmarks/results/quantized_scores.md

The same images (one reference each, four prompts, the same noise) from the base's kernels in
float32, bfloat16, int8 and fp8, judged by networks that no method reads; and the differences from
float32, image by image. Nothing is timed.
"""

import argparse
import datetime
from pathlib import Path

import jax
import numpy as np

from benchmarks.machine import processor
from benchmarks.quantization import STORED, open_base
from benchmarks.training.personal import EACH, Judge, Person, generate
from data_pipeline.cli import command
from data_pipeline.files import write_text
from persongen_jax.metrics.measures import measure
from persongen_jax.miniature.__main__ import ASSETS
from persongen_jax.tables import cell, markdown

PEOPLE = 10
FORMS = {"face_sim": "{:.3f}", "rank1": "{:.3f}", "clip_t": "{:.2f}"}
TITLES = {"face_sim": "Face-Sim", "rank1": "rank-1/10", "clip_t": "CLIP-T"}


def scores(stored: str, judge: Judge, people: list[Person]) -> dict[str, np.ndarray]:
    """By metric, [people, images] float; NaN where an image cannot be measured."""
    pipe = open_base(stored)
    weights = ASSETS / "photomaker-v1.safetensors"
    pipe.load_method("photomaker", weights, encoder=ASSETS / "clip")
    rows = [judge(n, *generate(pipe, person, True)) for n, person in enumerate(people)]
    print(f"{stored}: done", flush=True)
    return {name: np.array([row[name] for row in rows], float) for name in FORMS}


def measured(values: np.ndarray, people: list[Person]) -> dict:
    """The measure of [people, images]; images that cannot be measured are left out."""
    names = np.repeat([person.name for person in people], values.shape[1])
    known = np.isfinite(values.ravel())
    return measure(values.ravel()[known], names[known])


def report(people: list[Person]) -> str:
    judge = Judge(people)
    found = {stored: scores(stored, judge, people) for stored in STORED}
    rows, differences = [], []
    for stored, own in found.items():
        rows.append([stored, *(cell(measured(own[n], people), FORMS[n]) for n in FORMS)])
        if stored != STORED[0]:
            apart = {name: own[name] - found[STORED[0]][name] for name in FORMS}
            cells = [cell(measured(apart[n], people), FORMS[n]) for n in FORMS]
            differences.append([stored, *cells])
    head = ["kernels", *TITLES.values()]
    return (
        "# What kernels in 8 bits do to likeness and prompts\n\n"
        f"`python -m benchmarks.quantized_scores`, {datetime.date.today()}, {processor()}, jax "
        f"{jax.__version__}. The shipped adapter, {len(people)} strangers, one reference each, "
        f"four prompts, {EACH} images of each; means and 95 % intervals over people.\n\n"
        + markdown(head, rows)
        + f"\n\nDifferences from {STORED[0]}, of images from the same noise:\n\n"
        + markdown(head, differences)
        + "\n"
    )


@command
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quantized_scores", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--people", type=int, default=PEOPLE, help=f"(default: {PEOPLE})")
    parser.add_argument("--out", type=Path, help="a Markdown file for the tables")
    args = parser.parse_args(argv)
    text = report([Person(number) for number in range(args.people)])
    print(text)
    if args.out:
        write_text(args.out, text)


if __name__ == "__main__":
    main()
