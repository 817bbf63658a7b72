"""The report that a study writes into its working directory.

study.md               everything on one page
comparison.md, .csv    every metric of every method on every set: means over seeds and people with
                       their 95 % intervals, and the judges; .json has all measures
<metric>.png           training trajectories, a line per method: face_sim.png is the thesis'
                       figure 6.1, clip_t.png figure 6.2
sheet_<set>.png        the reference and one image per method, like figures 6.3 and 6.4
cost.md, .csv          trained parameters, time of a step, size of a checkpoint
"""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from data_pipeline.files import write_text
from data_pipeline.text_files import read_json
from persongen_jax.evaluation.comparison import (
    check_comparable,
    join_curves,
    join_groups,
    rows_of_groups,
    table,
    write_tables,
)
from persongen_jax.evaluation.contact_sheet import Row, contact_sheet
from persongen_jax.evaluation.groups.by_group import write_groups
from persongen_jax.evaluation.of_run import FINAL, PICTURES
from persongen_jax.evaluation.trajectories import (
    plot_trajectories,
    plotted_metrics,
    read_rows,
    set_order,
)
from persongen_jax.evaluation.validation import write_image_file
from persongen_jax.metrics.measures import with_descriptions
from persongen_jax.tables import markdown, write_csv


def write_report(study: ConfigDict, runs: Sequence[Any], costs: dict | None) -> str:
    """Write everything; return the page's text.

    Args:
        study: the study's config; runs: all finished (persongen_jax/study/__main__.py).
        costs: cost.json's contents, or None.
    """
    out = Path(study.workdir)
    groups = by_name(runs, lambda run: read_rows(run.results / FINAL))
    check_comparable(groups)
    entries = join_groups(groups)
    write_tables(entries, out)
    by_group = filter(None, [write_groups(rows_of_groups(groups), out)])
    page = [heading(study, runs), table(entries), chance_line(entries), *by_group]

    curves = join_curves(by_name(runs, validation_rows))
    figures = [
        f"![{title}]({metric}.png)"
        for metric, title in plotted_metrics(curves).items()
        if plot_trajectories(curves, out / f"{metric}.png", {metric: title})
    ]
    page += ["## Trajectories", *figures] if figures else []

    sheets = [f"![{name}]({sheet.name})" for name, sheet in write_sheets(study, runs, out).items()]
    page += ["## The same people and prompts", *sheets]
    if costs:
        rows = cost_rows(costs, runs)
        write_csv(out / "cost.csv", rows)
        text = cost_table(rows)
        write_text(out / "cost.md", text + "\n")
        page += [f"## Cost ({costs['device']})", text, COST_NOTE]
    text = "\n\n".join(page)
    write_text(out / "study.md", text + "\n")
    return text


def by_name(runs: Iterable[Any], read: Callable[[Any], Any]) -> dict[str, list]:
    """``read(run)`` for all runs of a method, in the order of the seeds."""
    groups = {}
    for run in runs:
        groups.setdefault(run.name, []).append(read(run))
    return groups


def validation_rows(run: Any) -> list[dict]:
    return read_rows(run.folder / "validation" / "metrics.jsonl")


def heading(study: ConfigDict, runs: Sequence[Any]) -> str:
    config, seeds = runs[0].config, ", ".join(map(str, study.seeds))
    described = f" of {config.size} pixels" if config.get("size") else ""
    described += f", data `{config.data}`" if config.get("data") else ""
    return (
        f"# {len(study.methods)} methods, seeds {seeds}\n\n"
        f"Each run: {config.steps} steps of {config.batch_size} images{described}. Means over "
        "seeds and people, in brackets the 95 % interval over both; n is the number of "
        "images."
    )


def chance_line(entries: Iterable[tuple]) -> str:
    """The value of guessing, where known; it may differ between sets."""
    levels = {}
    for _, set_name, _, metrics in entries:
        for measure in with_descriptions({"metrics": metrics}).values():
            if "chance" in measure:
                key = f"{measure['title']} on {set_name.replace('_', '-')}"
                levels.setdefault(key, measure["form"].format(measure["chance"]))
    if not levels:
        return ""
    return f"By chance: {', '.join(f'{key} {level}' for key, level in levels.items())}."


# ---- Sheets ------------------------------------------------------------------------------------


def write_sheets(study: ConfigDict, runs: Iterable[Any], out: Path) -> dict[str, Path]:
    """Path by set: a row per person and prompt, a column per method; the first seed."""
    first = {run.name: run.results / PICTURES for run in runs if run.seed == study.seeds[0]}
    indices = {name: read_json(p / "index.json") for name, p in first.items()}
    sheets = {}
    for set_name in set_order(entry["set"] for index in indices.values() for entry in index):
        own = {
            name: {entry["label"]: entry for entry in index if entry["set"] == set_name}
            for name, index in indices.items()
        }
        rows = []
        for label, entry in next(iter(own.values())).items():
            reference = read_image(next(iter(first.values())) / entry["reference"])
            # Prompts are the same for all, but a method may have been evaluated on fewer people.
            pictures = [
                read_image(first[name] / index[label]["picture"])
                for name, index in own.items()
                if label in index
            ]
            if len(pictures) == len(own):
                rows.append(Row(label, reference, pictures))
        if rows:
            sheets[set_name] = out / f"sheet_{set_name}.png"
            write_image_file(sheets[set_name], contact_sheet(rows, ["reference", *own]))
    return sheets


def read_image(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


# ---- Cost --------------------------------------------------------------------------------------

COST_NOTE = (
    "A step's time is that of the same batch, measured in turns; in brackets the minimum and "
    "maximum of the rounds, as a multiple of the first method's. A checkpoint holds the trained "
    "weights and the optimizer's state, which resuming needs; at full size both are counted as "
    "three float32 numbers per trained parameter, and nothing is measured."
)


def cost_rows(costs: dict, runs: Sequence[Any]) -> list[dict]:
    """A row of numbers per method."""
    rows = []
    for name, cost in costs["methods"].items():
        run = next(run for run in runs if run.name == name)
        full = cost["full_size"]
        whole = sum(full.values()) if full else None
        rows.append(
            {
                "method": name,
                "trained_parameters": sum(cost["trained"].values()),
                "gflop_per_step": round(cost["gflop"], 3),
                "seconds_per_step": cost["seconds"],
                "relative": cost["relative"],
                "relative_low": cost["low"],
                "relative_high": cost["high"],
                "checkpoint_bytes": checkpoint_bytes(run),
                "full_size_trained_parameters": whole,
                "full_size_checkpoint_bytes": 3 * 4 * whole if whole else None,
            }
        )
    return rows


def checkpoint_bytes(run: Any) -> int:
    """The size on disk of the last checkpoint."""
    folder = run.folder / "checkpoints" / str(run.config.steps)
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def cost_table(rows: list[dict]) -> str:
    """The table in Markdown."""
    head = ["method", "trained", "GFLOP a step", "step time", "checkpoint"]
    head += ["trained at full size", "checkpoint at full size"]
    lines = []
    for row in rows:
        full, size = row["full_size_trained_parameters"], row["full_size_checkpoint_bytes"]
        bounds = f"({row['relative_low']:.2f} to {row['relative_high']:.2f})"
        lines.append(
            [
                row["method"],
                f"{row['trained_parameters'] / 1e6:.3f} M",
                f"{row['gflop_per_step']:.1f}",
                f"{row['relative']:.2f} {bounds}",
                f"{row['checkpoint_bytes'] / 1e6:.1f} MB",
                f"{full / 1e6:.1f} M" if full else "-",
                f"{size / 1e9:.2f} GB" if size else "-",
            ]
        )
    return markdown(head, lines)
