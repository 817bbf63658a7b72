"""Runs and finished studies on this machine: which there are, and what their files say."""

import csv
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from data_pipeline.text_files import read_json
from persongen_jax.evaluation.folders.layouts import INDEX, PICTURES
from persongen_jax.evaluation.trajectories import curve, plotted_metrics, read_rows

DEPTH = 4  # of folders below a root
RUN, STUDY = "metrics.jsonl", "comparison.csv"
MOST_IMAGES = 24  # of a study at once


def found(roots: Sequence[Path], mark: str) -> list[str]:
    """Folders below the roots that hold the file ``mark``, the latest first.

    Args:
        roots: resolved. mark: RUN or STUDY.
    """
    places: set[Path] = set()
    for root in roots:
        for depth in range(DEPTH + 1):
            for file in root.glob("/".join([*["*"] * depth, mark])):
                # validation/metrics.jsonl belongs to the run above it.
                if file.parent.name != "validation" and inside(file.parent, roots):
                    places.add(file.parent)
    return [str(p) for p in sorted(places, key=lambda p: -(p / mark).stat().st_mtime)]


def inside(folder: Path, roots: Sequence[Path]) -> bool:
    """Whether it lies below one of the roots, links followed."""
    return any(folder.resolve().is_relative_to(root) for root in roots)


def allowed(name: str | None, roots: Sequence[Path]) -> Path:
    """The folder called ``name``.

    Raises:
        ValueError: there is none, or it is outside of the roots.
    """
    if not name:
        raise ValueError("choose a folder")
    folder = Path(name)
    if not inside(folder, roots):
        raise ValueError(f"{name}: outside of the page's folders; start it with --root")
    if not folder.is_dir():
        raise ValueError(f"{name}: no such folder")
    return folder


def picture(file: Path) -> Image.Image:
    """An image file, RGB."""
    with Image.open(file) as image:
        return image.convert("RGB")


# ---- A run -------------------------------------------------------------------------------------

LOGGED = {"loss": "loss", "images_per_second": "images/s", "mfu": "MFU"}


def training_curves(run: Path) -> dict[str, list[tuple[int, float]]]:
    """(step, value) of each thing that is logged, by its title."""
    rows = read_rows(run / RUN)
    return {
        title: [(row["step"], row[key]) for row in rows if row.get(key) is not None]
        for key, title in LOGGED.items()
    }


def validation_curves(run: Path) -> dict[str, dict[str, list[tuple]]]:
    """(step, mean, low, high) by title of a metric, then by set."""
    rows = read_rows(run / "validation" / RUN)
    sets = list(dict.fromkeys(row["set"] for row in rows))
    curves = {}
    for metric, title in plotted_metrics({"run": rows}).items():
        by_set = {name: curve(rows, name, metric) for name in sets}
        curves[title] = {name: points for name, points in by_set.items() if points}
    return {title: by_set for title, by_set in curves.items() if by_set}


def sheets(run: Path) -> dict[int, list[Path]]:
    """The contact sheets of each validated step."""
    steps: dict[int, list[Path]] = {}
    for file in sorted((run / "validation").glob("step_*.png")):
        if match := re.match(r"step_(\d+)_", file.name):
            steps.setdefault(int(match[1]), []).append(file)
    return dict(sorted(steps.items()))


# ---- A study -----------------------------------------------------------------------------------


def study_table(study: Path) -> tuple[list[str], list[list[float | str]]]:
    """(columns, rows) of its comparison; numbers as numbers, so that they sort."""
    with open(study / STUDY, encoding="utf-8", newline="") as file:
        columns, *rows = list(csv.reader(file))
    return columns, [[_number(value) for value in row] for row in rows]


def _number(text: str) -> float | str:
    try:
        return round(float(text), 4)
    except ValueError:
        return text


def study_plots(study: Path) -> list[Path]:
    """Its trajectories."""
    return [file for file in sorted(study.glob("*.png")) if not file.name.startswith("sheet_")]


def study_images(study: Path, method: str, set_name: str) -> list[Path]:
    """What a method generated of the people of a set: its first seed's, at most MOST_IMAGES.

    They are those that the evaluation of its latest step wrote, see evaluation/of_run.py.

    Raises:
        ValueError: it wrote none, or no index of them.
    """
    runs = sorted((study / method).glob("seed_*"), key=_last_number)
    places = [place for run in runs[:1] for place in run.glob(f"evaluation/step_*/{PICTURES}")]
    if not places:
        raise ValueError(f"{method}: no pictures; evaluate its first run with --pictures")
    pictures = max(places, key=lambda place: _last_number(place.parent))
    wanted = set_name.replace("-", "_")
    try:
        index: Any = read_json(pictures / INDEX)
        names = [entry["picture"] for entry in index if entry["set"] == wanted]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{pictures / INDEX}: not an evaluation's index of pictures") from error
    return [pictures / Path(name).name for name in names[:MOST_IMAGES]]


def _last_number(folder: Path) -> int:
    """12 of seed_12 and step_000012; -1 without a number."""
    number = folder.name.rpartition("_")[2]
    return int(number) if number.isdigit() else -1
