"""The results of measured folders as rows of numbers, for JSON, CSV and tables."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from persongen_jax.evaluation.folders.pairing import Difference
from persongen_jax.evaluation.folders.scoring import Scores
from persongen_jax.evaluation.groups.by_group import Entry, rows_by_group
from persongen_jax.metrics.base import Metric
from persongen_jax.metrics.measures import NUMBERS

SHOWN = 8  # images at each end


def score_rows(scores: Sequence[Scores]) -> list[dict[str, Any]]:
    """A row for each metric and folder, metric by metric.

    Keys: metric, title, folder, value, low, high (None without an interval), reason (why), n
    images, people, missing images, judge.
    """
    rows = []
    for name in dict.fromkeys(name for each in scores for name in each.measures):
        for each in scores:
            if name in each.measures:
                measure = each.measures[name]
                row = {"metric": name, "title": measure["title"], "folder": each.folder.name}
                row |= {"value": measure["mean"]}
                row |= {key: measure.get(key) for key in ("low", "high", "reason", "n")}
                row |= {"people": len(measure["people"]) if "people" in measure else None}
                row |= {"missing": measure.get("missing", 0), "judge": measure["judge"]}
                rows.append(row)
    return rows


def difference_rows(differences: Sequence[Difference]) -> list[dict[str, Any]]:
    """A row for each metric and pair of folders: "first" minus "second"."""
    rows = []
    for each in differences:
        interval, metric = each.interval, each.metric
        row: dict[str, Any] = {"metric": metric.name, "title": metric.title}
        row |= {"first": each.first, "second": each.second, "difference": interval.mean}
        row |= {"low": interval.low, "high": interval.high, "reason": interval.reason or None}
        row |= {"n": interval.n, "people": interval.units}
        row |= {"people_to_settle": each.people, "seeds_to_settle": each.seeds}
        rows.append({**row, "left_out": each.left_out or None})
    return rows


def image_rows(scores: Sequence[Scores]) -> list[dict[str, Any]]:
    """A row for each image, with its value of every metric; None where it has none.

    Excluded images have a row too, with the reason.
    """
    names = [
        name
        for name in dict.fromkeys(name for each in scores for name in each.metrics)
        if any(each.of_images(name) is not None for each in scores)
    ]
    rows = []
    for each in scores:
        columns = {name: each.of_images(name) for name in names}
        for i, entry in enumerate(each.entries):
            row: dict[str, Any] = {"folder": each.folder.name, "file": entry.file}
            row |= {"person": entry.person, "prompt": entry.prompt, "seed": entry.seed}
            for name, values in columns.items():
                number = None if values is None else float(values[i])
                row[name] = None if number is None or np.isnan(number) else number
            rows.append({**row, "excluded": None})
        for file, why in each.folder.excluded.items():
            row = {"folder": each.folder.name, "file": file, "person": None, "prompt": None}
            rows.append({**row, "seed": None, **dict.fromkeys(names), "excluded": why})
    return rows


def group_entries(scores: Sequence[Scores]) -> list[Entry]:
    """What groups/by_group.py makes tables of; labels only where there are several folders."""
    return [
        (
            each.folder.name if len(scores) > 1 else "",
            [{"metrics": each.measures, "groups": each.groups}],
        )
        for each in scores
    ]


def as_json(
    scores: Sequence[Scores], differences: Sequence[Difference], notes: Sequence[str]
) -> dict[str, Any]:
    """{"metrics": {NAME: {"value", "low", "high", "n", …}}, "images", "people", "excluded", …}.

    Several folders: {"folders": {NAME: that of one}, "differences": difference_rows, "notes"}.
    """
    if len(scores) == 1:
        return {**_of_folder(scores[0]), "notes": [*notes, *scores[0].folder.notes]}
    folders = {
        each.folder.name: {**_of_folder(each), "notes": each.folder.notes} for each in scores
    }
    return {"folders": folders, "differences": difference_rows(differences), "notes": list(notes)}


def _of_folder(scores: Scores) -> dict[str, Any]:
    metrics, lost = {}, unmeasured(scores)
    for name, measure in scores.measures.items():
        interval = {key: measure.get(key) for key in ("low", "high", "n")}
        rest = {key: v for key, v in measure.items() if key not in (*interval, "mean")}
        facts = {key: v for key, v in rest.items() if key not in NUMBERS}
        own = {"value": measure["mean"], **interval, "missing": measure.get("missing", 0)}
        own |= {"reason": measure["reason"]} if "reason" in measure else {}
        own |= {key: rest[key] for key in ("people", "parts") if key in rest}
        if name in lost:
            own["not_measured"] = [scores.entries[i].file for i in lost[name]]
        metrics[name] = {**own, **facts}
    return {
        "metrics": metrics,
        "images": len(scores.entries),
        "people": scores.people,
        "groups": rows_by_group(group_entries([scores])),
        "layout": scores.folder.layout,
        "excluded": scores.folder.excluded,
    }


# ---- images that are worth a look --------------------------------------------------------------


def best_and_worst(
    values: np.ndarray, metric: Metric | type[Metric]
) -> tuple[list[int], list[int]]:
    """Places of the best and of the worst images, the extreme ones first; none is in both.

    Images as good as the best are not among the worst, so that shares of 100 % have no worst.

    Args:
        values: [n], NaN where there is none.
    """
    there = np.flatnonzero(~np.isnan(values))
    less_is_better = metric.less_is_better
    if metric.target is not None:
        values, less_is_better = np.abs(values - metric.target), True
    order = there[np.argsort(values[there], kind="stable")].tolist()
    order = order if less_is_better else order[::-1]
    if not order:
        return [], []
    best = order[: min(SHOWN, (len(order) + 1) // 2)]
    best = [i for i in best if values[i] != values[order[-1]]] or order[:1]
    worst = [i for i in order[len(best) :][::-1] if values[i] != values[best[0]]]
    return best, worst[:SHOWN]


def unmeasured(scores: Scores) -> dict[str, list[int]]:
    """Places of the images that a metric could not measure, by its name; only if there are any."""
    found = {}
    for name in scores.metrics:
        values = scores.of_images(name)
        if values is not None and np.isnan(values).any():
            found[name] = np.flatnonzero(np.isnan(values)).tolist()
    return found
