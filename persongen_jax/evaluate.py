"""Measure what a training run has learned, or compare several runs.

    python -m persongen_jax.evaluate --run runs/photomaker_bg --images 10
    python -m persongen_jax.evaluate --compare runs/a_seed1 runs/a_seed2 runs/b_seed1 runs/b_seed2

The first paints and measures by the run's own config (configs/base.py, "Validation"), where the
options say nothing else; it prints a table and writes metrics.json and contact sheets. The second
reads what was measured, joins runs of one method that differ by their seed, prints a table and
draws the trajectories.
"""

import argparse
import contextlib
import sys
import tempfile
from pathlib import Path

from ml_collections import ConfigDict

from persongen_jax.checkpoint import find_run, load_trained
from persongen_jax.metrics.measures import join_runs
from persongen_jax.partition import fill_trained
from persongen_jax.sharding import make_mesh, replicated
from persongen_jax.trajectories import SETS, plot_trajectories, read_rows
from persongen_jax.weights.saver import write_json

# Title and number format of the table's columns by metric.
COLUMNS = {
    "clip_t": ("CLIP-T", "{:.2f}"),
    "face_sim": ("Face-Sim", "{:.3f}"),
    "rank1_10": ("rank-1/10", "{:.1%}"),
    "rank1_100": ("rank-1/100", "{:.1%}"),
    "detection_rate": ("faces found", "{:.1%}"),
}
FINAL = "metrics.json"


def parse_arguments(argv=None):
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
        "NAME=PATH; those of one name are taken together; default name: the method",
    )
    add = parser.add_argument
    add("--step", type=int, metavar="N", help="of the checkpoint or the rows; default: the newest")
    add("--out", type=Path, metavar="DIR", help="default: RUN/evaluation/step_N; evaluation")
    add("--base", metavar="DIR", help="SDXL directory, if it is no longer where it was")
    add("--id-encoder", metavar="DIR", help="CLIP image tower, likewise")
    add(
        "--sets",
        nargs="+",
        metavar="SET",
        help=f"only these: {', '.join(SETS)}, or SET=SOURCE to read it from elsewhere",
    )
    add("--gallery", metavar="SOURCE", help="the people among whom rank-1 looks")
    add("--people", type=int, metavar="N", help="of each set, at most")
    add("--images", type=int, metavar="N", help="per person and prompt")
    add("--steps", type=int, metavar="N", help="sampling steps")
    add("--merge-step", type=int, metavar="N", help="the identity acts after this sampling step")
    add("--guidance", type=float, metavar="X", help="guidance scale")
    add("--seed", type=int, metavar="N", help="of the noise")
    add("--batch", type=int, metavar="N", help="pictures at once")
    add("--prompts", help='"thesis" or a JSON file')
    add("--clip", metavar="DIR", help="transformers CLIP directory for CLIP-T")
    add("--face-net", metavar="FILE", help="face recogniser for Face-Sim")
    add("--face-detector", help="finder of faces for Face-Sim")
    return parser.parse_args(argv)


# The config's key for each option that has the same name but for a prefix.
OPTIONS = {
    "base": "base",
    "id_encoder": "id_encoder",
    "gallery": "validation_gallery",
    "people": "validation_people",
    "images": "validation_images",
    "steps": "validation_steps",
    "merge_step": "validation_merge_step",
    "guidance": "validation_guidance",
    "seed": "validation_seed",
    "batch": "validation_batch",
    "prompts": "validation_prompts",
    "clip": "clip",
    "face_net": "face_net",
    "face_detector": "face_detector",
}


# ---- one run -----------------------------------------------------------------------------------


def evaluate(args) -> list[dict]:
    """Paint, measure and write; the rows, one per set.

    The model is put together as in training, so that the figures are those of a validation.
    """
    from persongen_jax.evaluation import Evaluation
    from persongen_jax.train import build_model
    from persongen_jax.validation import write_image_file

    workdir, newest = find_run(args.run)
    step = newest if args.step is None else args.step
    sharding = replicated(make_mesh())
    with only_step(workdir, step) as folder:
        trained, saved = load_trained(folder, sharding)
    config = read_config(saved, args)
    base, method = build_model(config, sharding)
    fill_trained(base.model, trained, config.trainable or method.groups, str(workdir))
    evaluation = Evaluation(config, base, method)
    results = evaluation(base.model, step)
    out = args.out or workdir / "evaluation" / f"step_{step:06d}"
    out.mkdir(parents=True, exist_ok=True)
    for name, result in results.items():
        write_image_file(out / f"{name}.png", evaluation.sheet(name, result.images))
    rows = [result.row for result in results.values()]
    write_json(out / FINAL, rows)
    print(table([("", row["set"], 1, row["metrics"]) for row in rows]))
    print(f"written: {out}")
    return rows


def read_config(saved: dict, args) -> ConfigDict:
    """The run's config, with today's defaults for keys that it lacks, and the options' values."""
    from configs.base import get_config

    config = ConfigDict({**get_config().to_dict(), **saved})
    for option, key in OPTIONS.items():
        value = getattr(args, option)
        if value is not None:
            config[key] = value
    if args.sets:
        choose_sets(config, args.sets)
    if not any(config[f"validate_{name}"] for name in SETS):
        raise ValueError(
            "the run's config names no set of people to validate with; give --sets "
            "out_of_train=SOURCE, a manifest folder or such as people:out_of_train"
        )
    return config


def choose_sets(config, items):
    """``items``: NAME for one of the config's own sets, NAME=SOURCE for another."""
    sources = {}
    for item in items:
        name, given, source = item.partition("=")
        if name not in SETS:
            raise ValueError(f"--sets {item}: there are {', '.join(SETS)}")
        sources[name] = source if given else config[f"validate_{name}"]
        if not sources[name]:
            raise ValueError(f"--sets {item}: the run's config has no source of it; give {name}=…")
    for name in SETS:
        config[f"validate_{name}"] = sources.get(name, "")


@contextlib.contextmanager
def only_step(workdir: Path, step: int):
    """A folder that looks like the run with the checkpoint of ``step`` alone."""
    checkpoint = workdir / "checkpoints" / str(step)
    if not checkpoint.is_dir():
        there = sorted(int(p.name) for p in (workdir / "checkpoints").glob("[0-9]*"))
        raise FileNotFoundError(
            f"{workdir}: no checkpoint of step {step}; there are {', '.join(map(str, there))}"
        )
    with tempfile.TemporaryDirectory(prefix="persongen-jax-") as folder:
        (Path(folder) / "checkpoints").mkdir()
        (Path(folder) / "checkpoints" / str(step)).symlink_to(checkpoint)
        yield Path(folder)


# ---- several runs ------------------------------------------------------------------------------


def compare(args) -> dict:
    """Print and write the joint table and the trajectories; the joint measures by set and name."""
    groups = {}
    for item in args.compare:
        name, rows = read_run(item)
        groups.setdefault(name, []).append(rows)
    check_comparable(groups)
    entries = []
    for set_name in SETS:
        for name, runs in groups.items():
            found = [row for rows in runs for row in last_rows(rows, args.step, set_name)]
            if found:
                entries.append((name, set_name, len(found), join_metrics(found)))
    if not entries:
        raise ValueError(f"--compare: no rows of step {args.step} in any of these runs")
    out = args.out or Path("evaluation")
    out.mkdir(parents=True, exist_ok=True)
    plot = plot_trajectories(
        {name: join_trajectories(runs) for name, runs in groups.items()}, out / "trajectories.png"
    )
    joint = [
        {"name": name, "set": set_name, "runs": runs, "metrics": metrics}
        for name, set_name, runs, metrics in entries
    ]
    write_json(out / "comparison.json", joint)
    text = table(entries)
    (out / "comparison.md").write_text(text + "\n", encoding="utf-8")
    print(text)
    print(f"written: {out}" + ("" if plot is None else f", {plot}"))
    return joint


def read_run(item: str) -> tuple[str, list[dict]]:
    """(name, rows) of PATH or NAME=PATH: a run's folder, or a metrics file itself."""
    name, given, path = item.rpartition("=")
    if not given or Path(item).exists():
        name, path = "", item
    path = Path(path)
    file = path / "validation" / "metrics.jsonl" if path.is_dir() else path
    rows = read_rows(file)
    if not rows:
        raise FileNotFoundError(f"{file}: no validation rows there; give a run that was validated")
    return name or rows[-1]["method"], rows


def check_comparable(groups: dict):
    """ValueError where encoders differ: their figures mean different things."""
    for key in ("clip", "face_net"):
        values = {row.get(key) for runs in groups.values() for rows in runs for row in rows}
        if len(values) > 1:
            raise ValueError(
                f"--compare: measured with different {key} ({', '.join(sorted(map(str, values)))});"
                " evaluate the runs with the same one first"
            )


def last_rows(rows, step: int | None, set_name: str) -> list[dict]:
    """The row of ``step``, or the newest, in a list; [] if there is none."""
    found = [row for row in rows if row["set"] == set_name and step in (None, row["step"])]
    return [max(found, key=lambda row: row["step"])] if found else []


def join_metrics(rows: list[dict]) -> dict:
    """Joint measures by metric, of those that all of the rows have."""
    names = [name for name in rows[0]["metrics"] if all(name in row["metrics"] for row in rows)]
    return {name: join_runs([row["metrics"][name] for row in rows]) for name in names}


def join_trajectories(runs: list[list[dict]]) -> list[dict]:
    """Rows of one curve: at each step the joint measures of the runs that have it."""
    at = {}
    for row in (row for rows in runs for row in rows):
        at.setdefault((row["step"], row["set"]), []).append(row)
    return [
        {"step": step, "set": name, "metrics": join_metrics(rows)}
        for (step, name), rows in sorted(at.items())
    ]


# ---- the table ---------------------------------------------------------------------------------


def table(entries) -> str:
    """Markdown of (name, set, runs, measures by metric); n is the number of pictures."""
    several = any(name for name, *_ in entries)
    head = ["set", *(["run", "runs"] if several else [])]
    head += [title for title, _ in COLUMNS.values()] + ["n"]
    lines = [head, ["---"] * len(head)]
    for name, set_name, runs, metrics in entries:
        cells = [set_name.replace("_", "-"), *([name, str(runs)] if several else [])]
        cells += [cell(metrics.get(metric), form) for metric, (_, form) in COLUMNS.items()]
        counts = [metrics[m]["n"] for m in ("clip_t", "detection_rate") if m in metrics]
        lines.append([*cells, str(max(counts, default=0))])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cell(measure: dict | None, form: str) -> str:
    """0.312 (0.280 to 0.351); "-" if nothing was measured."""
    if measure is None or measure["mean"] is None:
        return "-"
    text = form.format(measure["mean"])
    if measure["low"] is None:
        return text
    return f"{text} ({form.format(measure['low'])} to {form.format(measure['high'])})"


def main(argv=None):
    args = parse_arguments(argv)
    try:
        compare(args) if args.compare else evaluate(args)
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
