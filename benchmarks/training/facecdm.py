"""FaceCDM's three stages and its ControlNet in the miniature: what each adds, over three seeds.

    python -m benchmarks.training.facecdm --work runs/facecdm --out benchmarks/results/facecdm.md

trains `configs/mini/facecdm/stage1.py` to `stage3.py` and `configs/mini/controlnet.py` with each
seed and evaluates them on strangers by networks that no method reads. What is complete is not
repeated: the command can be stopped. Options that it does not know are passed on to all trainings.
"""

import datetime
import json
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import jax

from benchmarks.machine import processor
from benchmarks.training.over_seeds import difference, done, over_seeds, verdict
from benchmarks.training.seeds import run_training
from data_pipeline.cli import command
from persongen_jax.metrics.measures import join_runs
from persongen_jax.tables import cell, markdown
from persongen_jax.weights.saver import write_json

SET = "out_of_train"
PEOPLE = 30
METRICS = ("face_sim", "rank1_10", "rank1_100", "clip_t", "pose_error", "pck", "face_sharpness")
NOBODY = {"image": 0.0, "face": 0.0, "pose": 0.0}  # then the UNet computes what the base does


class Row(NamedTuple):
    """An evaluation: of which run, with which scales of what the method adds."""

    title: str
    run: str
    scales: dict


ROWS = (
    Row("the base: prompts alone", "stage3", NOBODY),
    Row("stage 1: image branch", "stage1", {}),
    Row("stage 2: and face branch", "stage2", {}),
    Row("stage 3: all", "stage3", {}),
    Row("stage 3 without the pose", "stage3", {"pose": 0.0}),
    Row("a ControlNet alone", "controlnet", {}),
    Row("the same at scale 0", "controlnet", {"pose": 0.0}),
)
# What the paper says, as differences of rows: metric, the row with, the row without.
CLAIMS = (
    *((metric, stage, 0) for metric in METRICS[:4] for stage in (1, 2, 3)),
    ("pose_error", 3, 4),
    ("pose_error", 5, 6),
    ("pck", 3, 4),
    ("pck", 5, 6),
    ("face_sharpness", 3, 4),
    ("face_sharpness", 5, 6),
)


def train_all(seed: int, work: Path, options: list[str]) -> Path:
    """The three stages and the ControlNet; complete ones end at once."""
    folder = work / str(seed)
    quiet = [f"--config.seed={seed}", "--config.validation_every=0", *options]
    before = ""
    for stage in ("stage1", "stage2", "stage3"):
        start = [f"--config.start_from={before}"] if before else []
        config = f"configs/mini/facecdm/{stage}.py"
        if not done(folder / stage):
            run_training(config, folder / stage, folder / f"{stage}.log", [*quiet, *start])
        before = str(folder / stage)
    if not done(folder / "controlnet"):
        log = folder / "controlnet.log"
        run_training("configs/mini/controlnet.py", folder / "controlnet", log, quiet)
    return folder


def evaluate(row: Row, folder: Path) -> dict:
    """The measures of a row, kept in a file next to its run."""
    file = folder / f"{ROWS.index(row)}.json"
    if file.exists():
        return json.loads(file.read_text())
    from persongen_jax.evaluation.people import Evaluation
    from persongen_jax.systems.open import open_run

    def settings(config):
        config.metrics = METRICS
        config.validate_in_train = config.validate_out_of_domain = ""
        config.validate_out_of_train = f"people:{SET}?identities={PEOPLE}&{UNSEEN}"
        config.validation_gallery = f"people:{SET}?identities=100&{UNSEEN}"
        config.validation_people = PEOPLE

    run = open_run(folder / row.run, change=settings)
    evaluation = Evaluation(run.system)
    if row.scales:
        known = evaluation.options
        own = {name: s for name, s in row.scales.items() if name in scalable(run.system)}
        evaluation.options = replace(known, scales=own)
    found = evaluation(run.system.model, run.step)[SET].row["metrics"]
    write_json(file, found)
    return found


UNSEEN = "pictures=3&first_picture=1000000"


def scalable(system) -> tuple[str, ...]:
    from persongen_jax.pipeline import Pipeline

    return Pipeline.from_system(system).conditioner.scalable_names


def report(found: dict[int, list[dict]], options: list[str]) -> str:
    seeds, first = list(found), found[next(iter(found))][0]
    titles = {name: first[name]["title"] for name in METRICS if name in first}
    rows = []
    for number, row in enumerate(ROWS):
        each = [found[seed][number] for seed in seeds]
        joint = {name: join_runs([one[name] for one in each]) for name in titles}
        rows.append([row.title, *(cell(joint[n], first[n]["form"]) for n in titles)])
    claims = []
    for metric, one, other in CLAIMS:
        with_it, without = (
            [found[seed][place][metric] for seed in seeds] for place in (one, other)
        )
        found_ = difference(with_it, without)
        low, high = (f"{x:.4f}" if x is not None else "?" for x in (found_.low, found_.high))
        text = f"{found_.mean:.4f} [{low}, {high}]"
        claims.append(
            [titles[metric], ROWS[one].title, ROWS[other].title, text, verdict(metric, found_)]
        )
    count = first["clip_t"]["n"]
    passed = f" {' '.join(options)}" if options else ""
    return (
        "# FaceCDM in the miniature\n\n"
        f"`python -m benchmarks.training.facecdm{passed}`, {datetime.date.today()}, {processor()}, "
        f"jax {jax.__version__}. Seeds {', '.join(map(str, seeds))}; {PEOPLE} strangers, "
        f"{count} images a row and seed, of all framings; means and 95 % intervals over people and "
        "seeds. Judges that no method reads.\n\n"
        + markdown(["", *titles.values()], rows)
        + "\n\nDifferences, paired by person and seed:\n\n"
        + markdown(["figure", "with", "without", "difference", ""], claims)
        + "\n"
    )


def of_seed(seed: int, work: Path, options: list[str]) -> list[dict]:
    folder = train_all(seed, work, options)
    return [evaluate(row, folder) for row in ROWS]


@command
def main(argv: list[str] | None = None) -> None:
    over_seeds(argv, "facecdm", __doc__.split("\n")[0], of_seed, report)


if __name__ == "__main__":
    main()
