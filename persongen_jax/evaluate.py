"""Measure what a training run has learned, or compare several runs.

    python -m persongen_jax.evaluate --run runs/photomaker_bg --images 10
    python -m persongen_jax.evaluate --compare runs/a_seed1 runs/a_seed2 runs/b_seed1 runs/b_seed2

The first form generates images and measures them by the run's own config (configs/base.py,
"Validation") unless options say otherwise; it prints a table and writes metrics.json and contact
sheets. The second reads existing measurements, joins runs of one method that differ by their seed,
prints a table and draws the trajectories.
seed, prints a table and draws the trajectories.
"""

import argparse
import warnings
from pathlib import Path

from ml_collections import ConfigDict

from persongen_jax.cli import add_mark_option, command
from persongen_jax.diffusion.options import VALIDATION_FLAGS, add_validation_options
from persongen_jax.evaluation.comparison import compare_runs, table
from persongen_jax.evaluation.people import Result
from persongen_jax.evaluation.trajectories import SETS, write_rows
from persongen_jax.evaluation.validation import Evaluation, open_evaluation, write_image_file
from persongen_jax.parallel import distributed
from persongen_jax.pipeline.saving import ImageWriter, to_rgb
from persongen_jax.systems.open import open_run, system_class
from persongen_jax.weights.saver import write_json

FINAL = "metrics.json"
PICTURES = "pictures"


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m persongen_jax.evaluate",
        description=__doc__.split("\n")[0],
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--run", metavar="DIR", help="working directory of a training run")
    what.add_argument(
        "--compare",
        nargs="+",
        metavar="RUN",
        help="runs (their validation/metrics.jsonl, last step) or metrics files, each as PATH or "
        "NAME=PATH; those with one name are joined; default name: the method",
    )
    add = parser.add_argument
    add("--step", type=int, metavar="N", help="step of the checkpoint or rows; default: newest")
    add("--out", type=Path, metavar="DIR", help="default: RUN/evaluation/step_N; evaluation")
    add("--base", metavar="DIR", help="SDXL directory, if it is no longer where it was")
    add("--id-encoder", metavar="DIR", help="CLIP image tower, likewise")
    add(
        "--sets",
        nargs="+",
        metavar="SET",
        help=f"only these: {', '.join(SETS)}, or SET=SOURCE to read it from elsewhere",
    )
    add("--gallery", metavar="SOURCE", help="the people that rank-1 searches")
    add("--people", type=int, metavar="N", help="per set, at most")
    add("--images", type=int, metavar="N", help="per person and prompt")
    add_validation_options(parser)
    add("--batch", type=int, metavar="N", help="images at once")
    add("--data", metavar="DATA", help="for a run on attributes, if its folder has moved")
    add("--csv", metavar="FILE", help="its table, likewise")
    add("--classifier", metavar="DIR", help="run of a classifier that judges attributes, likewise")
    add("--prompts", help='"thesis" or a JSON file')
    add("--clip", metavar="FILE|DIR", help="CLIP for CLIP-T and CLIP-I, see docs/formats.md")
    add("--dino", metavar="FILE|DIR", help="DINO's image encoder for DINO-I")
    add("--dinov2", metavar="FILE|DIR", help="DINOv2's image encoder for DINOv2-I")
    add("--face-net", metavar="FILE", help="face recogniser for Face-Sim")
    add("--face-detector", help="face detector for Face-Sim")
    add("--metrics", nargs="+", metavar="NAME", help="what to measure, see metrics/registry.py")
    add(
        "--judges-are-inputs",
        nargs="*",
        metavar="NAME",
        help="metrics whose judge the method may read itself",
    )
    add("--pictures", action="store_true", help="with --run: also save each first image as a file")
    add_mark_option(parser)
    return parser.parse_args(argv)


# The config's key for each option with the same name up to a prefix.
OPTIONS = {
    "base": "base",
    "id_encoder": "id_encoder",
    "data": "data",
    "csv": "csv",
    "classifier": "classifier",
    "gallery": "validation_gallery",
    "people": "validation_people",
    "images": "validation_images",
    **VALIDATION_FLAGS,
    "batch": "validation_batch",
    "prompts": "validation_prompts",
    "clip": "clip",
    "dino": "dino",
    "dinov2": "dinov2",
    "face_net": "face_net",
    "face_detector": "face_detector",
    "metrics": "metrics",
    "judges_are_inputs": "judges_are_inputs",
}
# Every config has ``data``; an evaluation reads it only for systems that store it in their runs.
NEEDS = {"data": "described"}


# ---- one run -----------------------------------------------------------------------------------


def evaluate(args: argparse.Namespace) -> list[dict]:
    """Generate, measure and write; return the rows, one per set.

    The model is assembled as in training, so that the figures are those of a validation.
    """
    run = open_run(args.run, args.step, lambda config: change_config(config, args))
    evaluation = open_evaluation(run.system)
    results = evaluation(run.system.model, run.step)
    if not distributed.is_first():
        return [result.row for result in results.values()]
    out = args.out or run.workdir / "evaluation" / f"step_{run.step:06d}"
    out.mkdir(parents=True, exist_ok=True)
    for name, result in results.items():
        write_image_file(out / f"{name}.png", evaluation.sheet(name, result.images))
    if args.pictures:
        mark = evaluation.generates and not args.no_mark
        write_images(out / PICTURES, evaluation, results, mark)
    rows = [result.row for result in results.values()]
    write_rows(out / FINAL, rows)
    print(table([("", row["set"], 1, row["metrics"]) for row in rows]))
    print(f"written: {out}")
    return rows


def change_config(config: ConfigDict, args: argparse.Namespace) -> None:
    """Put the options' values into a run's config, in place."""
    for option, key in OPTIONS.items():
        value = getattr(args, option)
        if value is not None:
            if NEEDS.get(option, key) not in config:
                name = option.replace("_", "-")
                raise ValueError(
                    f"--{name}: the run's system ({config.system}) has no such setting"
                )
            config[key] = tuple(value) if isinstance(value, list) else value
    if args.sets:
        choose_sets(config, args.sets)
    if not system_class(config.system).validation_sets_of(config):
        raise ValueError(
            "the run's config names no set of people to validate with; give --sets "
            "out_of_train=SOURCE, a manifest folder or, for example, people:out_of_train"
        )


def write_images(
    folder: Path, evaluation: Evaluation, results: dict[str, Result], mark: bool
) -> None:
    """Write the first image of every person and prompt to a file, and an index of them.

    index.json: a list of {"set", "label", "reference", "picture"}, the last two as file names.
    """
    folder.mkdir(exist_ok=True)
    index, write = [], ImageWriter(mark)
    for name, result in results.items():
        for i, j, row in evaluation.rows(name, result.images):
            names = f"{name}_{i:03d}.png", f"{name}_{i:03d}_{j:02d}.png"
            write_image_file(folder / names[0], row.reference)
            write(to_rgb(row.images[0]), folder / names[1])
            entry = {"set": name, "label": row.label}
            index.append({**entry, "reference": names[0], "picture": names[1]})
    write_json(folder / "index.json", index)


def choose_sets(config: ConfigDict, items: list[str]) -> None:
    """``items``: NAME for one of the config's own sets, NAME=SOURCE for another."""
    sources = {}
    if f"validate_{SETS[0]}" not in config:
        raise ValueError(
            f"--sets: the run's system ({config.system}) has sets of its own; leave it out"
        )
    for item in items:
        name, given, source = item.partition("=")
        if name not in SETS:
            raise ValueError(f"--sets {item}: there are {', '.join(SETS)}")
        sources[name] = source if given else config[f"validate_{name}"]
        if not sources[name]:
            raise ValueError(f"--sets {item}: the run's config has no source for it; give {name}=…")
    for name in SETS:
        config[f"validate_{name}"] = sources.get(name, "")


def compare(args: argparse.Namespace) -> None:
    """Compare runs that have been measured; generates nothing."""
    told = set(vars(args)) - {"compare", "out", "step"}
    idle = [f"--{name.replace('_', '-')}" for name in sorted(told) if getattr(args, name)]
    if idle:
        warnings.warn(
            f"{', '.join(idle)}: no effect with --compare, which reads existing measurements",
            stacklevel=1,
        )
    compare_runs(args.compare, args.out or Path("evaluation"), args.step)


@command
def main(argv: list[str] | None = None) -> None:
    args = parse_arguments(argv)
    if args.compare:
        compare(args)
    else:
        with distributed.run_distributed():
            evaluate(args)


if __name__ == "__main__":
    main()
