"""How metrics change over training: rows of validation/metrics.jsonl, and their plot."""

import json
from collections.abc import Iterable
from pathlib import Path

from data_pipeline.files import atomic_write, write_text
from data_pipeline.text_files import parse_json, read_json, whole_lines
from persongen_jax.metrics.measures import with_descriptions
from persongen_jax.systems.sdxl_config import SETS


def read_rows(path: str | Path) -> list[dict]:
    """The rows of a metrics.jsonl, or the list in a metrics.json; [] if there is no such file.

    A line that a crash cut short is skipped.
    """
    path = Path(path)
    if not path.exists():
        return []
    if path.suffix == ".json":
        return read_json(path)
    return [parse_json(line, path, number) for number, line in enumerate(whole_lines(path), 1)]


def set_order(names: Iterable[str]) -> list[str]:
    """Names of sets in the order of tables: the thesis' three, then others in their own order."""
    names = list(dict.fromkeys(names))
    return [name for name in SETS if name in names] + [name for name in names if name not in SETS]


def write_rows(path: Path, rows: list[dict]) -> None:
    """A .json of rows in one piece; their metrics stay in the config's order, as tables have it."""
    write_text(path, json.dumps(rows, indent=2) + "\n")


def curve(rows: list[dict], name: str, metric: str) -> list[tuple]:
    """(step, mean, low, high) of one metric on one set, by step; steps without it are skipped."""
    points = [
        (row["step"], *(row["metrics"][metric][key] for key in ("mean", "low", "high")))
        for row in rows
        if row["set"] == name and row["metrics"].get(metric, {}).get("mean") is not None
    ]
    return sorted(points, key=lambda point: point[0])


def plotted_metrics(runs: dict[str, list[dict]]) -> dict[str, str]:
    """Title by metric, for metrics whose description says plotted, in the rows' order."""
    return {
        metric: measure["title"]
        for rows in runs.values()
        for row in rows
        for metric, measure in with_descriptions(row).items()
        if measure["plotted"]
    }


def plot_trajectories(
    runs: dict[str, list[dict]], path: Path, metrics: dict[str, str] | None = None
) -> Path | None:
    """Draw every run's curves into a PNG: a panel per metric and set, the interval as a band.

    Args:
        runs: rows by the name of the curve, such as the method's.
        path: the file to write; its folder exists.
        metrics: title by metric; default :func:`plotted_metrics`. Metrics without values are left
            out.

    Returns:
        The path, or None if there is nothing to draw.
    """
    sets = set_order(row["set"] for rows in runs.values() for row in rows)
    metrics = {
        metric: title
        for metric, title in (plotted_metrics(runs) if metrics is None else metrics).items()
        if any(curve(rows, name, metric) for rows in runs.values() for name in sets)
    }
    if not metrics:
        return None
    # The legend is next to the panels: with many methods it would cover the curves.
    width = 1 + 3.2 * len(sets) + (1.8 if len(runs) > 1 else 0)
    figure = _figure(figsize=(width, 0.6 + 2.4 * len(metrics)), layout="constrained")
    axes = figure.subplots(len(metrics), len(sets), squeeze=False, sharex=True, sharey="row")
    for row, (metric, title) in zip(axes, metrics.items(), strict=True):
        for axis, name in zip(row, sets, strict=True):
            for number, (label, rows) in enumerate(runs.items()):
                _draw(axis, curve(rows, name, metric), label, f"C{number}")
            axis.grid(alpha=0.3)
            if metric == next(iter(metrics)):
                axis.set_title(name.replace("_", "-"))
        row[0].set_ylabel(title)
    for axis in axes[-1]:
        axis.set_xlabel("step")
    if len(runs) > 1:
        # Not every run has every set and metric, so a single panel may lack some of them.
        drawn = {line.get_label(): line for axis in axes.flat for line in axis.get_lines()}
        handles = [drawn[label] for label in runs if label in drawn]
        figure.legend(handles=handles, fontsize="small", loc="outside right center")
    with atomic_write(path) as partial:
        figure.savefig(partial, dpi=100, format="png", metadata={"Software": None})
    return path


def _draw(axis, points, label, color):
    if not points:
        return
    steps, means, lows, highs = zip(*points, strict=True)
    axis.plot(steps, means, marker="o", markersize=3, label=label, color=color)
    if None not in lows + highs:
        axis.fill_between(steps, lows, highs, color=color, alpha=0.2, linewidth=0)


def _figure(**settings):
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install matplotlib") from error
    # Without pyplot: no window, no backend to choose, no global state.
    return Figure(**settings)
