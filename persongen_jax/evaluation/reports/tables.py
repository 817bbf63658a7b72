"""The tables of a report: cells as texts, once for Markdown and for HTML."""

from collections.abc import Sequence
from pathlib import Path

from data_pipeline.files import write_text
from persongen_jax.evaluation.folders.pairing import Difference
from persongen_jax.evaluation.folders.scoring import Scores
from persongen_jax.evaluation.groups.by_group import write_groups
from persongen_jax.evaluation.reports.results import (
    difference_rows,
    group_entries,
    image_rows,
    score_rows,
    unmeasured,
)
from persongen_jax.tables import markdown, write_csv

Table = tuple[list[str], list[list[str]]]
"""The head, and the rows."""

UNSETTLED = "no number known"
NAMED = 20  # files that a line names at most


def score_table(scores: Sequence[Scores]) -> Table:
    """A row for each metric and folder; the folder's column only if there are several."""
    forms = {name: m["form"] for each in scores for name, m in each.measures.items()}
    several = len(scores) > 1
    head = ["metric", *(["folder"] if several else []), "value", "95 % interval over people"]
    rows = []
    for row in score_rows(scores):
        form = forms[row["metric"]]
        cells = [row["title"], *([row["folder"]] if several else [])]
        cells += [number(row["value"], form), limits(row, form), str(row["n"])]
        people = "-" if row["people"] is None else str(row["people"])
        rows.append([*cells, people, str(row["missing"]), row["judge"] or "-"])
    return [*head, "images", "people", "not measured", "judge"], rows


def difference_table(differences: Sequence[Difference]) -> Table:
    """A row for each metric and pair of folders."""
    head = ["metric", "difference", "value", "95 % interval over people", "images", "people"]
    rows = []
    for each, row in zip(differences, difference_rows(differences), strict=True):
        form = each.metric.form
        cells = [row["title"], f"{each.first} - {each.second}"]
        cells += [number(row["difference"], form), limits(row, form)]
        cells += [str(row["n"]), str(row["people"])]
        cells += [settled(row, each.people), settled(row, each.seeds)]
        rows.append([*cells, each.left_out or "-"])
    return [*head, "people to settle it", "seeds to settle it", "left out"], rows


def number(value: float | None, form: str) -> str:
    """A value in a metric's format; "-" for none."""
    return "-" if value is None else form.format(value)


def limits(row: dict, form: str) -> str:
    """ "0.280 to 0.351", or why there is no interval."""
    if row["low"] is None:
        return row["reason"] or "-"
    return f"{form.format(row['low'])} to {form.format(row['high'])}"


def settled(row: dict, count: int | None) -> str:
    """How many people or seeds would settle a difference's sign."""
    if row["low"] is not None and (row["low"] > 0 or row["high"] < 0):
        return "settled"
    return UNSETTLED if count is None else f"about {count:,}"


def notes_on_figures(scores: Scores) -> list[str]:
    """What metrics say about their figures, a line each."""
    return [f"{m['title']}: {m['note']}" for m in scores.measures.values() if m.get("note")]


def failures(scores: Scores) -> list[str]:
    """Lines on images that are not in a figure, and why; images.csv and scores.json name all."""
    excluded = scores.folder.excluded
    lines = [f"left out, {file}: {why}" for file, why in list(excluded.items())[:NAMED]]
    if len(excluded) > NAMED:
        lines.append(f"left out: {len(excluded) - NAMED} more, see images.csv")
    for name, places in unmeasured(scores).items():
        files = [scores.entries[i].file for i in places]
        more = f" and {len(files) - NAMED} more, see images.csv" if len(files) > NAMED else ""
        title, count = scores.metrics[name].title, f"{len(files)} of {len(scores.entries)}"
        lines.append(f"{title}: {count} images not measured: {', '.join(files[:NAMED])}{more}")
    return lines


def write_tables(
    scores: Sequence[Scores], differences: Sequence[Difference], notes: Sequence[str], out: Path
) -> str:
    """Write scores.csv, images.csv, differences.csv, groups.csv, scores.md; return the last one."""
    write_csv(out / "scores.csv", score_rows(scores))
    write_csv(out / "images.csv", image_rows(scores))
    if differences:
        write_csv(out / "differences.csv", difference_rows(differences))
    by_group = write_groups(group_entries(scores), out)
    text = as_markdown(scores, differences, notes, by_group)
    write_text(out / "scores.md", text + "\n")
    return text


def as_markdown(
    scores: Sequence[Scores],
    differences: Sequence[Difference],
    notes: Sequence[str],
    by_group: str = "",
) -> str:
    """The tables, with that of groups of people, what was assumed, and what was left out."""
    parts = [_in_markdown(score_table(scores))]
    if differences:
        parts += ["Differences on the same people, prompts and seeds:"]
        parts += [_in_markdown(difference_table(differences))]
    parts += filter(None, [by_group])
    for each in scores:
        folder = each.folder
        count = f"{len(each.entries)} images of {len(each.people)} people"
        lines = [f"{folder.name}: {count} ({folder.layout})"]
        lines += [f"- {note}" for note in folder.notes]
        lines += [f"- {line}" for line in (*notes_on_figures(each), *failures(each))]
        parts.append("\n".join(lines))
    if notes:
        parts.append("\n".join(f"- {note}" for note in notes))
    return "\n\n".join(parts)


def _in_markdown(table: Table) -> str:
    head, rows = table
    return markdown(head, [[cell.replace("|", "\\|") for cell in row] for row in rows])
