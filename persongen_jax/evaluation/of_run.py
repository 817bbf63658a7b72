"""Evaluates a training run: generates, measures by the run's own config, writes what was found.

The config is changed by the command's options, OPTIONS; persongen_jax/evaluate.py has their help.
"""

import argparse
from pathlib import Path

from ml_collections import ConfigDict

from persongen_jax.diffusion.options import VALIDATION_FLAGS
from persongen_jax.evaluation.comparison import table
from persongen_jax.evaluation.groups.by_group import write_groups
from persongen_jax.evaluation.people import Result
from persongen_jax.evaluation.trajectories import SETS, write_rows
from persongen_jax.evaluation.validation import Evaluation, open_evaluation, write_image_file
from persongen_jax.parallel import distributed
from persongen_jax.pipeline.saving import ImageWriter, to_rgb
from persongen_jax.systems.open import open_run, system_class
from persongen_jax.weights.saver import write_json

FINAL = "metrics.json"
PICTURES = "pictures"

# The config's key for each option with the same name up to a prefix.
OPTIONS = {
    "base": "base",
    "id_encoder": "id_encoder",
    "face_encoder": "face_encoder",
    "data": "data",
    "csv": "csv",
    "classifier": "classifier",
    "gallery": "validation_gallery",
    "people_per_set": "validation_people",
    "images_each": "validation_images",
    "size": "validation_size",
    "negative_prompt": "validation_negative_prompt",
    **VALIDATION_FLAGS,
    "batch": "validation_batch",
    "prompts": "validation_prompts",
    "clip": "clip",
    "dino": "dino",
    "dinov2": "dinov2",
    "inception": "inception",
    "fid_variant": "fid_variant",
    "lpips": "lpips",
    "cmmd_clip": "cmmd_clip",
    "face_net": "face_net",
    "face_detector": "face_detector",
    "pose_net": "pose_net",
    "metrics": "metrics",
    "judges_are_inputs": "judges_are_inputs",
}
# Every config has ``data``; an evaluation reads it only for systems that store it in their runs.
NEEDS = {"data": "described"}


def evaluate_run(args: argparse.Namespace) -> list[dict]:
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
        seed = run.config.validation_seed
        write_images(out / PICTURES, evaluation, results, mark, seed)
    rows = [result.row for result in results.values()]
    write_rows(out / FINAL, rows)
    print(table([("", row["set"], 1, row["metrics"]) for row in rows]))
    groups = write_groups([(row["set"].replace("_", "-"), [row]) for row in rows], out)
    print("\n".join(filter(None, [groups, f"written: {out}"])))
    return rows


def change_config(config: ConfigDict, args: argparse.Namespace) -> None:
    """Put the options' values into a run's config, in place.

    Raises:
        ValueError: an option that its system lacks; a run without people to validate with.
    """
    put_options(config, args)
    if not system_class(config.system).validation_sets_of(config):
        raise ValueError(
            "the run's config names no set of people to validate with; give --sets "
            "out_of_train=SOURCE, a manifest folder or, for example, people:out_of_train"
        )


def put_options(config: ConfigDict, args: argparse.Namespace) -> None:
    """Put the options' values into a config, in place; ValueError for one that it lacks."""
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


def write_images(
    folder: Path, evaluation: Evaluation, results: dict[str, Result], mark: bool, seed: int
) -> None:
    """Write the first image of every person and prompt to a file, and an index of them.

    index.json: a list of {"set", "label", "person", "prompt", "seed", "reference", "picture"}, the
    last two as file names; ``--images`` reads it (evaluation/folders/layouts.py).
    """
    folder.mkdir(exist_ok=True)
    index, write = [], ImageWriter(mark)
    for name, result in results.items():
        for i, j, row in evaluation.rows(name, result.images):
            names = f"{name}_{i:03d}.png", f"{name}_{i:03d}_{j:02d}.png"
            write_image_file(folder / names[0], row.reference)
            write(to_rgb(row.images[0]), folder / names[1])
            entry = {"set": name, "label": row.label, "person": row.person or row.label}
            entry |= {"prompt": row.prompt, "seed": seed}
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
