"""Means with their sample counts, intervals and descriptions.

A **measure** is a dict that JSON can hold:

    {"mean": 0.31, "low": 0.27, "high": 0.36, "n": 200, "people": {"anna": [0.33, 20], ...},
     "title": "Face-Sim", "form": "{:.3f}", "over": "images", "judge": "glintr100.onnx", ...}

``low`` and ``high`` are the 95 % interval over people (intervals/), or None, and then ``reason``
says why. ``people`` has each person's mean and count, so that several runs can be joined later.
``missing`` is the number of images that could not be measured, and ``missing_people`` that of each
person who has some, if there are any. A metric of a set has one number as its mean and no
``people``. A measure without values has mean None and n 0.
``parts`` has the measures of parts by name, such as single attributes; only for a single run.

The description is the metric's (base.py), so that tables and plots can be made where the metric
itself cannot be imported: "title", "form", "over", "plotted", "bounds", "judge", and if known
"chance". All other keys are facts, such as "among". Rows of earlier versions lack the description;
:func:`with_descriptions` fills it in.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from persongen_jax.metrics.base import Generated, Known, Metric, NoFigure, Values
from persongen_jax.metrics.intervals.limits import Bounds
from persongen_jax.metrics.intervals.people import NOTHING, Interval, over_answers, over_people
from persongen_jax.metrics.intervals.runs import over_people_and_runs, over_runs
from persongen_jax.metrics.registry import METRICS, find_class

NUMBERS = (
    *("mean", "low", "high", "n", "reason", "missing", "missing_people"),
    *("people", "parts", "runs", "n_each"),
)
# Keys of every described measure, with "judge".
DESCRIPTION = ("title", "form", "over", "plotted", "bounds")


# ---- from values -------------------------------------------------------------------------------


def measure_all(
    metrics: list[Metric], generated: Generated, known: Known, said: set[str] | None = None
) -> dict[str, dict]:
    """Measures by name, in the order of ``metrics``; without those that cannot be measured here.

    Args:
        said: what was printed before about figures that are not there; it is not printed again, and
            what is new is added. A run that validates many times keeps it.

    Raises:
        ValueError: a metric that does not return one value per image.
    """
    said = set() if said is None else said
    missing: dict[str, NoFigure] = {}
    values = values_of(metrics, generated, known, missing)
    for metric in metrics:
        if metric.name in missing:
            line = f"{known.name}: {metric.title} gives no figure: {missing[metric.name]}"
            if line not in said:
                print(line)
            said.add(line)
    return {
        metric.name: measure_of(metric, values[metric.name], generated)
        for metric in metrics
        if metric.name in values
    }


def values_of(
    metrics: list[Metric], generated: Generated, known: Known, missing: dict[str, NoFigure]
) -> dict[str, Values]:
    """What each metric returns, by its name; without those that cannot be measured here.

    Args:
        missing: gets the reasons, where metrics give one, by their names.

    Raises:
        ValueError: a metric that returns something else.
    """
    found = {}
    for metric in metrics:
        try:
            values = metric(generated, known)
        except NoFigure as error:
            missing[metric.name] = error
            continue
        if not isinstance(values, Values | None):
            kind = type(values).__name__
            raise ValueError(f"{metric.name}: gave a {kind}; return metrics.base.Values, or None")
        if values is not None:
            found[metric.name] = values
    return found


def measure_of(metric: Metric, values: Values, generated: Generated) -> dict:
    """The described measure of a metric's values.

    Raises:
        ValueError: other than one value per image, or for a set one number.
    """
    of_values = _of_set if metric.over == "set" else _of_images
    return {
        **of_values(metric, values, generated),
        **description(metric, metric.judge, values.facts),
        **values.facts,
    }


def _of_images(metric: Metric, values: Values, generated: Generated) -> dict:
    owners = np.asarray(generated.owners, str)

    def measured(values) -> dict:
        array = np.asarray(values, np.float64)
        if array.shape != owners.shape:
            raise ValueError(f"{metric.name}: values {array.shape} of {len(owners)} images")
        there = ~np.isnan(array)
        try:
            found = measure(array[there], owners[there], metric.bounds)
        except ValueError as error:
            raise ValueError(f"{metric.name}: {error}") from error
        return {**found, **_missing(owners[~there])}

    found = measured(values.values)
    if values.parts:
        parts = {name: (measured(part), part) for name, part in values.parts.items()}
        found["parts"] = {name: measure_part(*part) for name, part in parts.items()}
    return found


def _missing(owners: np.ndarray) -> dict:
    """What a measure says of images that were not measured; ``owners`` [n] says whose each is."""
    names, counts = np.unique(owners, return_counts=True)
    people = dict(zip(names.tolist(), counts.tolist(), strict=True))
    return {"missing": len(owners), "missing_people": people} if people else {}


def _of_set(metric: Metric, values: Values, generated: Generated) -> dict:
    if np.ndim(values.values):
        raise ValueError(f"{metric.name}: one number of the whole set is needed")
    if np.isnan(values.values):
        return Interval(None, None, None, 0, 0, NOTHING).as_measure()
    low, high = values.interval or (None, None)
    n = len(generated.images) if values.n is None else int(values.n)
    return {"mean": float(values.values), "low": low, "high": high, "n": n}


def measure(values: np.ndarray, people: np.ndarray, bounds: Bounds = None) -> dict:
    """The mean of ``values`` [n]; ``people`` [n] says whose image each is. No description."""
    values, people = np.asarray(values, np.float64), np.asarray(people, str)
    own = {name: values[people == name] for name in sorted(set(people.tolist()))}
    return {
        **over_people(values, people, bounds).as_measure(),
        "people": {name: [float(v.mean()), len(v)] for name, v in own.items()},
    }


def measure_part(measure: dict, values: np.ndarray) -> dict:
    """A part's measure, without each person's own figure.

    With a single owner, such as a class that is a part itself, images count as independent.
    """
    own = ("people", "missing_people")
    found = {key: value for key, value in measure.items() if key not in own}
    alone = measure["n"] > 1 and len(measure["people"]) < 2
    if alone and np.isin(values, (0, 1)).sum() == measure["n"]:
        found.pop("reason", None)
        found |= over_answers(values[~np.isnan(values)]).as_measure()
    return found


# ---- descriptions ------------------------------------------------------------------------------


def description(metric: Metric | type[Metric], judge: str | None, facts: Mapping[str, Any]) -> dict:
    """A measure's description from its metric; ``judge`` None: unknown."""
    own = {**{key: getattr(metric, key) for key in DESCRIPTION}, "judge": judge}
    if metric.chance is not None:
        own["chance"] = metric.chance
    elif facts.get("among"):
        own["chance"] = 1 / facts["among"]
    return own


def with_descriptions(row: dict) -> dict[str, dict]:
    """The measures of a row of metrics.jsonl by name, each with its description.

    What a row of an earlier version lacks comes from the registry and, for the judge, from the
    row's own "clip" and "face_net". "judge" is None if they do not say. Such rows have no order of
    their own, and get the registry's.
    """
    measures, names = row["metrics"], list(row["metrics"])
    if not all("title" in measure for measure in measures.values()):
        order = list(METRICS)
        names.sort(key=lambda name: order.index(name) if name in order else len(order))
    return {name: _described(name, measures[name], row) for name in names}


def _described(name: str, measure: dict, row: dict) -> dict:
    if all(key in measure for key in (*DESCRIPTION, "judge")):
        return measure
    if name in METRICS:
        metric = find_class(name)
        return {**description(metric, row.get(metric.judge_key), measure), **measure}
    own = {"title": name, "form": Metric.form, "plotted": True, "bounds": None, "judge": None}
    return {**own, "over": "images" if "people" in measure else "set", **measure}


# ---- several runs ------------------------------------------------------------------------------


def join_measures(measures: list[dict]) -> dict:
    """:func:`join_runs` of described measures, keeping what their descriptions have in common.

    If some of them do not know their judge, it is assumed to be that of the others.
    """
    first, joint = measures[0], join_runs(measures)
    for key in (key for key in first if key not in NUMBERS):
        if key in DESCRIPTION or all(each.get(key) == first[key] for each in measures):
            joint[key] = first[key]
    if notes := list(dict.fromkeys(each["note"] for each in measures if each.get("note"))):
        joint["note"] = "; ".join(notes)
    judges = list(dict.fromkeys(each["judge"] for each in measures if each["judge"] is not None))
    return {**joint, "judge": "; ".join(judges) if judges else None}


def join_runs(measures: list[dict]) -> dict:
    """One measure of several runs that differ by their seed.

    The interval is over people and runs (intervals/runs.py). If one of the measures has no people,
    like that of a set, it is over runs only, with equal weights; a single run keeps its own
    interval, and "n_each" says how many images each has.

    "people" and "missing_people" are left out; "n" is the total number of images, "runs" the number
    of runs with a value.
    """
    lost = sum(m.get("missing", 0) for m in measures)
    measures = [m for m in measures if m["n"]]
    missing = {"missing": lost} if lost else {}
    if not measures:
        nothing = Interval(None, None, None, 0, 0, NOTHING).as_measure()
        return {**nothing, "runs": 0, **missing}
    bounds = measures[0].get("bounds")
    bounds = None if bounds is None else (float(bounds[0]), float(bounds[1]))
    if any("people" not in m for m in measures):
        return {**_join_numbers(measures, bounds), **missing}
    names = sorted(set().union(*(m["people"] for m in measures)))
    cells = np.array([[m["people"].get(name, (0.0, 0)) for name in names] for m in measures])
    counts = cells[..., 1]
    joint = over_people_and_runs(cells[..., 0] * counts, counts, bounds).as_measure()
    return {**joint, "runs": len(measures), **missing}


def _join_numbers(measures: list[dict], bounds: Bounds) -> dict:
    runs, counts = len(measures), [m["n"] for m in measures]
    joint = over_runs(np.array([m["mean"] for m in measures]), bounds).as_measure()
    if runs == 1 and measures[0].get("low") is not None:
        joint = {key: measures[0][key] for key in ("mean", "low", "high")}
    joint |= {"n": sum(counts), "runs": runs}
    return {**joint, "n_each": counts[0]} if len(set(counts)) == 1 else joint
