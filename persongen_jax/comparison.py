"""Runs beside each other: joint measures, tables in Markdown, CSV and JSON, trajectories.

A run is a list of rows, as validation and evaluation write them ({"step", "set", "metrics", ...});
runs of one name, which differ by their seed, are taken together.
"""

import csv
import os
from pathlib import Path

from persongen_jax.metrics.measures import join_runs
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

# What has to be the same in all rows, and what in those of one set (evaluation.py writes them).
ENCODERS = ("clip", "face_net")
PAINTED_WITH = ("sampling_steps", "guidance", "merge_step", "prompts", "images_each")


def compare_runs(items: list[str], out: Path, step: int | None = None) -> list[dict]:
    """Print and write the joint table and the trajectories.

    Args:
        items: PATH or NAME=PATH, see :func:`read_run`.
        out: the folder.
        step: of the rows in the table; None: the newest of each run.
    """
    groups = {}
    for item in items:
        name, rows = read_run(item)
        groups.setdefault(name, []).append(rows)
    check_comparable(groups)
    entries = join_groups(groups, step)
    if not entries:
        raise ValueError(f"--compare: no rows of step {step} in any of these runs")
    joint = write_tables(entries, out)
    plot = plot_trajectories(join_curves(groups), out / "trajectories.png")
    print(table(entries))
    print(f"written: {out}" + ("" if plot is None else f", {plot}"))
    return joint


def read_run(item: str) -> tuple[str, list[dict]]:
    """(name, rows) of PATH or NAME=PATH: a run's folder, or a metrics file itself."""
    name, given, path = item.partition("=")  # a path may have one, as in lr=1e-4
    if not given or Path(item).exists():
        name, path = "", item
    path = Path(path)
    file = path / "validation" / "metrics.jsonl" if path.is_dir() else path
    rows = read_rows(file)
    if not rows:
        raise FileNotFoundError(f"{file}: no validation rows there; give a run that was validated")
    return name or rows[-1]["method"], rows


def check_comparable(groups: dict):
    """ValueError where figures mean different things: of other encoders, or painted otherwise."""
    rows = [row for runs in groups.values() for rows in runs for row in rows]
    for key in ENCODERS:
        _check_alike(key, rows)
    for name in dict.fromkeys(row["set"] for row in rows):
        for key in PAINTED_WITH:
            _check_alike(key, [row for row in rows if row["set"] == name], f" on {name}")


def _check_alike(key: str, rows: list[dict], where: str = ""):
    values = {row.get(key) for row in rows}
    if len(values) > 1:
        raise ValueError(
            f"--compare: measured with different {key}{where} "
            f"({', '.join(sorted(map(str, values)))}); evaluate the runs with the same one first, "
            "and give their metrics.json"
        )


def join_groups(groups: dict[str, list], step: int | None = None) -> list[tuple]:
    """(name, set, number of runs, joint measures) of every name and set that has rows."""
    entries = []
    for set_name in SETS:
        for name, runs in groups.items():
            found = [row for rows in runs for row in last_rows(rows, step, set_name)]
            if found:
                entries.append((name, set_name, len(found), join_metrics(found)))
    return entries


def join_curves(groups: dict[str, list]) -> dict[str, list]:
    """The joint rows of each name, for plot_trajectories."""
    return {name: join_trajectories(runs) for name, runs in groups.items()}


def last_rows(rows, step: int | None, set_name: str) -> list[dict]:
    """The row of ``step``, or the newest, in a list; [] if there is none."""
    found = [row for row in rows if row["set"] == set_name and step in (None, row["step"])]
    return [max(found, key=lambda row: row["step"])] if found else []


def join_metrics(rows: list[dict]) -> dict:
    """Joint measures by metric, of those that all of the rows have.

    "among", how many people a gallery holds, stays where it is the same in all of them.
    """
    joint = {}
    for name in rows[0]["metrics"]:
        if all(name in row["metrics"] for row in rows):
            measures = [row["metrics"][name] for row in rows]
            joint[name] = join_runs(measures)
            galleries = {measure.get("among") for measure in measures}
            if len(galleries) == 1 and None not in galleries:
                joint[name]["among"] = galleries.pop()
    return joint


def join_trajectories(runs: list[list[dict]]) -> list[dict]:
    """Rows of one curve: at each step the joint measures of the runs that have it."""
    at = {}
    for row in (row for rows in runs for row in rows):
        at.setdefault((row["step"], row["set"]), []).append(row)
    return [
        {"step": step, "set": name, "metrics": join_metrics(rows)}
        for (step, name), rows in sorted(at.items())
    ]


# ---- tables ------------------------------------------------------------------------------------


def write_tables(entries, out: Path) -> list[dict]:
    """comparison.json, .md and .csv in ``out``; what the first of them holds."""
    out.mkdir(parents=True, exist_ok=True)
    joint = [
        {"name": name, "set": set_name, "runs": runs, "metrics": metrics}
        for name, set_name, runs, metrics in entries
    ]
    write_json(out / "comparison.json", joint)
    (out / "comparison.md").write_text(table(entries) + "\n", encoding="utf-8")
    write_csv(out / "comparison.csv", csv_rows(entries))
    return joint


def csv_rows(entries) -> list[dict]:
    """The table as numbers: of each metric its mean, bounds and number of pictures."""
    rows = []
    for name, set_name, runs, metrics in entries:
        row = {"set": set_name, "run": name, "runs": runs}
        for metric in COLUMNS:
            measure = metrics.get(metric, {})
            row[metric] = measure.get("mean")
            row |= {f"{metric}_{key}": measure.get(key) for key in ("low", "high", "n")}
        rows.append(row)
    return rows


def write_csv(path: Path, rows: list[dict]):
    """A CSV file in one piece; None is an empty cell."""
    partial = path.with_name(path.name + ".part")
    with partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    os.replace(partial, path)


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
