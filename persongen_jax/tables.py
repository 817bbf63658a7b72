"""Tables in Markdown and CSV."""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path

from tabulate import tabulate

from data_pipeline.files import atomic_write


def markdown(head: Sequence[str], rows: Iterable[Sequence]) -> str:
    """Cells as they are given: not padded, so that one changed figure is one changed line."""
    return tabulate(rows, head, "github", numalign=None, stralign=None, disable_numparse=True)


def cell(measure: dict | None, form: str) -> str:
    """0.312 (0.280 to 0.351); "-" if nothing was measured."""
    if measure is None or measure["mean"] is None:
        return "-"
    text = form.format(measure["mean"])
    if measure["low"] is None:
        return text
    return f"{text} ({form.format(measure['low'])} to {form.format(measure['high'])})"


def write_csv(path: Path, rows: list[dict]) -> None:
    """A CSV file in one piece; None is an empty cell."""
    with atomic_write(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
