"""What a model on attributes has learned, in addition to the figures of a validation.

    python -m benchmarks.attributes lines --run RUN --classifier CLASSIFIER
    python -m benchmarks.attributes frechet --study runs/attributes/study

``lines``: does the classifier's score of A rise along the straight line from "not A" to "A"?
``frechet``: is the Fréchet distance lower with attributes than without, over the study's seeds?
Both print Markdown.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from data_pipeline.attributes.vocabulary import UNKNOWN
from persongen_jax.cli import command
from persongen_jax.evaluation.sampled import as_rgb
from persongen_jax.metrics.attribute_judge import AttributeJudge
from persongen_jax.metrics.intervals.people import over_answers
from persongen_jax.metrics.intervals.runs import over_runs
from persongen_jax.pipeline.attributes import AttributePipeline
from persongen_jax.tables import markdown

RISES = 0.5  # rank correlation of score and position above which a line counts as rising


# ---- lines -------------------------------------------------------------------------------------


def measure_lines(run, classifier, *, strips: int, frames: int, steps: int, guidance: float):
    """For each attribute, dicts of shares of its lines: see ``lines_table``.

    Strip i of an attribute starts from noise i and keeps the other attributes: a combination that
    training never saw, if there is one.
    """
    pipe, judge = AttributePipeline.from_run(run), AttributeJudge(classifier)
    data = pipe.system.data
    combinations = data.unseen if data.unseen is not None and len(data.unseen) else data.test.values
    rng, found = np.random.default_rng(0), {}
    if data.vocabulary.groups:
        raise ValueError(f"{run} knows classes; lines need yes-or-no attributes")
    for name in data.vocabulary.names:
        place = data.vocabulary.names.index(name)
        column = judge.vocabulary.names.index(name)
        scores = []
        for i in range(strips):
            values = combinations[rng.integers(len(combinations))].copy()
            ends = []
            for value in (0, 1):
                values[place] = value
                ends.append(data.vocabulary.describe(values, values != UNKNOWN))
            images = pipe.interpolate(
                *ends, frames=frames, index=i, num_inference_steps=steps, guidance_scale=guidance
            )
            scores.append(judge.scores(as_rgb(images))[0][:, column])
        found[name] = judge_lines(np.array(scores))
    return found


def judge_lines(scores) -> dict:
    """Shares of lines with scores [strips, frames], each with its interval."""
    places = np.arange(scores.shape[1])
    ranks = scores.argsort(1).argsort(1)
    correlation = np.array([np.corrcoef(places, row)[0, 1] for row in ranks])
    ends = scores[:, -1] > scores[:, 0]
    read = (scores[:, 0] < 0) & (scores[:, -1] > 0)
    return {
        "rises": over_answers(ends & (correlation > RISES)).as_measure(),
        "ends higher": over_answers(ends).as_measure(),
        "never falls": over_answers((np.diff(scores, axis=1) >= 0).all(1)).as_measure(),
        "read as asked at both ends": over_answers(read).as_measure(),
    }


def lines_table(found: dict) -> str:
    heads = list(next(iter(found.values())))
    rows = [
        [name, *(f"{s['mean']:.1%} ({s['low']:.1%} to {s['high']:.1%})" for s in shares.values())]
        for name, shares in found.items()
    ]
    n = next(iter(next(iter(found.values())).values()))["n"]
    total = [sum(f[h]["mean"] for f in found.values()) / len(found) for h in heads]
    rows.append(["all", *(f"{t:.1%}" for t in total)])
    return markdown(["attribute", *heads], rows) + (
        f"\n\n{n} strips of each attribute. Rises: the last frame's score is above the first's, "
        f"and the rank correlation of score and place is above {RISES}. Wilson's intervals at 95 %."
    )


# ---- the seed's claim ----------------------------------------------------------------------------


def compare_frechet(study: Path) -> str:
    """The table of the study's runs, and the interval of the mean difference over seeds."""
    figures: dict[str, dict[int, float]] = {}
    for path in sorted(study.glob("*/seed_*/evaluation/step_*/metrics.json")):
        (row,) = [r for r in json.loads(path.read_text()) if r["set"] == "seen"]
        value = row["metrics"]["frechet_attributes"]["mean"]
        figures.setdefault(row["method"], {})[row["seed"]] = value
    (with_it, without) = (figures.get(name, {}) for name in ("ddpm", "unconditional"))
    seeds = sorted(with_it.keys() & without.keys())
    if not seeds:
        raise ValueError(f"{study}: no seed with both runs evaluated; run the study first")
    pairs = np.array([(with_it[s], without[s]) for s in seeds])
    differences = pairs[:, 0] - pairs[:, 1]
    found = over_runs(differences)
    rows = [
        [s, f"{a:.3f}", f"{b:.3f}", f"{a - b:+.3f}"] for s, (a, b) in zip(seeds, pairs, strict=True)
    ]
    verdict, interval = f"open: {found.reason}", f"{differences.mean():+.3f}"
    if found.low is not None and found.high is not None:
        low, high = found.low, found.high
        verdict = "lower" if high < 0 else "higher" if low > 0 else "open: the interval holds 0"
        interval += f" ({low:+.3f} to {high:+.3f})"
    rows.append(["mean", *(f"{mean:.3f}" for mean in pairs.mean(0)), interval])
    head = ("seed", "with attributes", "without", "difference")
    return markdown(head, rows) + f"\n\nWith attributes the distance is {verdict}."


@command
def main(argv=None):
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.attributes", description=__doc__.split("\n")[0]
    )
    which = parser.add_subparsers(dest="which", required=True)
    lines = which.add_parser("lines")
    lines.add_argument("--run", required=True)
    lines.add_argument("--classifier", required=True)
    lines.add_argument("--strips", type=int, default=40, help="of each attribute")
    lines.add_argument("--frames", type=int, default=9)
    lines.add_argument("--steps", type=int, default=25)
    lines.add_argument("--guidance", type=float, default=3.0)
    frechet = which.add_parser("frechet")
    frechet.add_argument("--study", type=Path, required=True)
    args = parser.parse_args(argv)
    if args.which == "frechet":
        print(compare_frechet(args.study))
        return
    options = {name: getattr(args, name) for name in ("strips", "frames", "steps", "guidance")}
    print(lines_table(measure_lines(args.run, args.classifier, **options)))


if __name__ == "__main__":
    main()
