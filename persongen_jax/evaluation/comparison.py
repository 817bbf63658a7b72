"""Compares runs: joint measures, tables in Markdown, CSV and JSON, trajectories.

A run is a list of rows, as validation and evaluation write them ({"step", "set", "metrics", ...});
runs with the same name, which differ by their seed, are joined. The rows themselves say which
metrics there are, how they are called and what judged them (metrics/measures.py).
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

from data_pipeline.files import write_text
from persongen_jax.evaluation.groups.by_group import not_measured, write_groups
from persongen_jax.evaluation.trajectories import (
    plot_trajectories,
    read_rows,
    set_order,
    write_rows,
)
from persongen_jax.metrics.measures import join_measures, with_descriptions
from persongen_jax.tables import cell, markdown, write_csv

# What must be equal in all rows of one set (evaluation/people.py writes them).
GENERATED_WITH = (
    "sampling_steps",
    "guidance",
    "merge_step",
    "prompts",
    "images_each",
    "references",
)


def compare_runs(items: list[str], out: Path, step: int | None = None) -> list[dict]:
    """Print and write the joint table and the trajectories.

    Args:
        items: PATH or NAME=PATH, see :func:`read_run`.
        out: the folder to write to.
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
    by_group = write_groups(rows_of_groups(groups, step), out)
    joint = write_tables(entries, out, by_group)
    plot = plot_trajectories(join_curves(groups), out / "trajectories.png")
    print("\n\n".join(filter(None, [table(entries), by_group])))
    print(f"written: {out}" + ("" if plot is None else f", {plot}"))
    return joint


def read_run(item: str) -> tuple[str, list[dict]]:
    """(name, rows) of PATH or NAME=PATH: a run's folder, or a metrics file itself."""
    name, given, place = item.partition("=")  # a path may contain one, as in lr=1e-4
    if not given or Path(item).exists():
        name, place = "", item
    path = Path(place)
    file = path / "validation" / "metrics.jsonl" if path.is_dir() else path
    rows = read_rows(file)
    if not rows:
        raise FileNotFoundError(f"{file}: no validation rows there; give a run that was validated")
    return name or rows[-1]["method"], rows


def check_comparable(groups: dict) -> None:
    """ValueError if the runs' figures are not comparable.

    That is the case if a metric has several judges, if images were generated with other settings,
    or if figures of whole sets, which are biased by the number of images, have different numbers.
    If a row of an earlier version names no judge, it is assumed to be that of the others.
    """
    rows = [row for runs in groups.values() for rows in runs for row in rows]
    judges, counts = {}, {}
    for row in rows:
        for metric, measure in with_descriptions(row).items():
            judges.setdefault(metric, (measure["title"], set()))[1].add(measure["judge"])
            if measure["over"] == "set" and measure["n"]:
                key = f"numbers of images for {measure['title']} on {row['set']}"
                counts.setdefault(key, set()).add(measure["n"])
    for title, found in judges.values():
        _check_equal(f"judges of {title}", found - {None})
    for key, found in counts.items():
        _check_equal(key, found)
    for name in dict.fromkeys(row["set"] for row in rows):
        for key in GENERATED_WITH:
            values = {row.get(key) for row in rows if row["set"] == name}
            _check_equal(f"{key} on {name}", values)


def _check_equal(what: str, values: set):
    if len(values) > 1:
        raise ValueError(
            f"--compare: measured with different {what} "
            f"({', '.join(sorted(map(str, values)))}); evaluate the runs with the same one first, "
            "and give their metrics.json"
        )


def join_groups(groups: dict[str, list], step: int | None = None) -> list[tuple]:
    """(name, set, number of runs, joint measures) for every name and set that has rows."""
    return [(*of, len(rows), join_metrics(rows)) for *of, rows in _last_of_all(groups, step)]


def rows_of_groups(groups: dict[str, list], step: int | None = None) -> list[tuple]:
    """("NAME SET", rows) likewise, for tables by group of people."""
    found = _last_of_all(groups, step)
    return [(f"{name} {set_name.replace('_', '-')}", rows) for name, set_name, rows in found]


def _last_of_all(groups, step) -> list[tuple]:
    """(name, set, the rows of ``step``, or the newest) for every name and set that has some."""
    entries = []
    for set_name in set_order(row["set"] for runs in groups.values() for r in runs for row in r):
        for name, runs in groups.items():
            found = [row for rows in runs for row in last_rows(rows, step, set_name)]
            if found:
                entries.append((name, set_name, found))
    return entries


def join_curves(groups: dict[str, list]) -> dict[str, list]:
    """The joint rows of each name, for plot_trajectories."""
    return {name: join_trajectories(runs) for name, runs in groups.items()}


def last_rows(rows: Iterable[dict], step: int | None, set_name: str) -> list[dict]:
    """The row of ``step``, or the newest, in a list; [] if there is none."""
    found = [row for row in rows if row["set"] == set_name and step in (None, row["step"])]
    return [max(found, key=lambda row: row["step"])] if found else []


def join_metrics(rows: list[dict]) -> dict:
    """Joint measures by metric, for metrics that all rows have; with their descriptions.

    A fact such as "among", the number of people in a gallery, is kept if it is equal in all rows.
    """
    all_measures = [with_descriptions(row) for row in rows]
    return {
        name: join_measures([measures[name] for measures in all_measures])
        for name in all_measures[0]
        if all(name in measures for measures in all_measures)
    }


def join_trajectories(runs: list[list[dict]]) -> list[dict]:
    """Rows of one curve: the joint measures at each step, over the runs that have it."""
    at = {}
    for row in (row for rows in runs for row in rows):
        at.setdefault((row["step"], row["set"]), []).append(row)
    return [
        {"step": step, "set": name, "metrics": join_metrics(rows)}
        for (step, name), rows in sorted(at.items())
    ]


# ---- tables ------------------------------------------------------------------------------------


def write_tables(entries: Sequence[tuple], out: Path, more: str = "") -> list[dict]:
    """Write comparison.json, .md with ``more`` and .csv; return the contents of the first."""
    out.mkdir(parents=True, exist_ok=True)
    joint = [
        {"name": name, "set": set_name, "runs": runs, "metrics": metrics}
        for name, set_name, runs, metrics in entries
    ]
    write_rows(out / "comparison.json", joint)
    write_text(out / "comparison.md", "\n\n".join(filter(None, [table(entries), more])) + "\n")
    write_csv(out / "comparison.csv", csv_rows(entries))
    return joint


def columns(entries: Sequence[tuple]) -> dict[str, dict]:
    """A described measure for every metric that has a column, in the entries' order."""
    found = {}
    for *_, metrics in entries:
        for metric, measure in with_descriptions({"metrics": metrics}).items():
            found.setdefault(metric, measure)
    return found


def csv_rows(entries: Sequence[tuple]) -> list[dict]:
    """The table as numbers: each metric's mean, bounds, number of images, and judge."""
    rows, measured = [], columns(entries)
    for name, set_name, runs, metrics in entries:
        row = {"set": set_name, "run": name, "runs": runs}
        for metric in measured:
            measure = metrics.get(metric, {})
            row[metric] = measure.get("mean")
            row |= {f"{metric}_{key}": measure.get(key) for key in ("low", "high", "n", "judge")}
        rows.append(row)
    return rows


def table(entries: Sequence[tuple]) -> str:
    """Markdown of (name, set, runs, measures by metric), the judges, what was not measured, notes.

    n is the largest number of images that any metric could measure.
    """
    several = any(name for name, *_ in entries)
    measured = columns(entries)
    head = ["set", *(["run", "runs"] if several else [])]
    head += [measure["title"] for measure in measured.values()] + ["n"]
    rows = []
    for name, set_name, runs, metrics in entries:
        cells = [set_name.replace("_", "-"), *([name, str(runs)] if several else [])]
        cells += [cell(metrics.get(metric), each["form"]) for metric, each in measured.items()]
        counts = [measure["n"] for measure in metrics.values()]
        rows.append([*cells, str(max(counts, default=0))])
    texts = [markdown(head, rows), *parts_tables(entries)]
    texts += [judges_line(entries), missing_line(entries), notes_lines(entries)]
    return "\n\n".join(filter(None, texts))


def parts_tables(entries: Sequence[tuple]) -> list[str]:
    """A table for each measure that has parts, such as attributes: a row each, a column per set."""
    tables = []
    for name, each in columns(entries).items():
        found = [
            (" ".join(filter(None, (run, set_name.replace("_", "-")))), metrics[name]["parts"])
            for run, set_name, _, metrics in entries
            if metrics.get(name, {}).get("parts")
        ]
        if found:
            head = [each["title"], *(label for label, _ in found)]
            rows = []
            for part in dict.fromkeys(part for _, parts in found for part in parts):
                cells = [cell(parts.get(part), each["form"]) for _, parts in found]
                rows.append([part, *cells])
            tables.append(markdown(head, rows))
    return tables


def judges_line(entries: Sequence[tuple]) -> str:
    """Such as "Judges: CLIP-T by A; Face-Sim, rank-1/10 by B."; "" if no row names one."""
    titles = {}
    for *_, metrics in entries:
        for measure in with_descriptions({"metrics": metrics}).values():
            if measure["judge"]:
                titles.setdefault(measure["judge"], {})[measure["title"]] = None
    parts = [f"{', '.join(own)} by {judge}" for judge, own in titles.items()]
    return f"Judges: {'; '.join(parts)}." if parts else ""


def missing_line(entries: Sequence[tuple]) -> str:
    """Such as "Not measured: Face-Sim 3 of 40 images (photomaker in-train)."; "" if nothing is."""
    return not_measured(
        (
            " ".join(filter(None, (name, set_name.replace("_", "-")))),
            with_descriptions({"metrics": metrics}),
        )
        for name, set_name, _, metrics in entries
    )


def notes_lines(entries: Sequence[tuple]) -> str:
    """What metrics say about their figures, a line each; "" for nothing."""
    lines = []
    for name, set_name, _, metrics in entries:
        place = " ".join(filter(None, (name, set_name.replace("_", "-"))))
        found = with_descriptions({"metrics": metrics}).values()
        lines += [f"{m['title']} ({place}): {m['note']}." for m in found if m.get("note")]
    return "\n".join(lines)
