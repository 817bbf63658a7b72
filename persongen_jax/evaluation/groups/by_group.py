"""Figures by group of people, such as of skin, hair or age: does a method serve all of them?

What a row of figures needs is in its "groups": {"age": {"old": ["anna", …], …}, …}. Groups are of
people, and a group's interval is over its own people (metrics/intervals/).
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from persongen_jax.metrics.base import Owner
from persongen_jax.metrics.intervals.people import over_sums
from persongen_jax.metrics.measures import join_measures, with_descriptions
from persongen_jax.tables import cell, markdown, write_csv

Groups = dict[str, dict[str, list[str]]]
"""People by their group, by what is grouped."""

UNKNOWN = "not known"
FILE = "groups.csv"
FEW = 10  # people; intervals are checked from here on (docs/metrics.md)


def groups_of(owners: Iterable[Owner]) -> Groups:
    """The groups of these people; {} if none is known of anybody.

    People of whom one thing is not known, which is of others, are in its group UNKNOWN.
    """
    people = list(owners)
    found: Groups = {}
    for name in dict.fromkeys(name for owner in people for name in owner.group):
        by_value: dict[str, list[str]] = {}
        for owner in people:
            by_value.setdefault(owner.group.get(name, UNKNOWN), []).append(owner.name)
        found[name] = {value: by_value[value] for value in sorted(by_value, key=_place)}
    return found


def _place(value):
    """UNKNOWN is the last."""
    return value == UNKNOWN, value


def measures_by_group(rows: Sequence[dict]) -> dict[str, dict[str, dict[str, dict]]]:
    """Joint measures of rows of one method and set, by what is grouped, by group, by metric.

    Each has ``units``, its number of people, and perhaps ``missing``, the images of the group's
    people that were not measured. Metrics of sets have no groups.

    Args:
        rows: {"metrics", "groups"} each; several differ by their seed.
    """
    found: dict[str, dict[str, dict[str, dict]]] = {}
    members: dict[tuple[str, str], dict[str, None]] = {}
    for row in rows:
        for name, groups in row.get("groups", {}).items():
            for value, people in groups.items():
                members.setdefault((name, value), {}).update(dict.fromkeys(people))
    for (name, value), people in members.items():
        own = [
            {
                metric: _restricted(measure, people)
                for metric, measure in with_descriptions(row).items()
                if "people" in measure
            }
            for row in rows
        ]
        metrics = {}
        for metric in own[0]:
            if all(metric in measures for measures in own):
                each = [measures[metric] for measures in own]
                units = {who for measure in each for who in measure["people"]}
                joint = each[0] if len(each) == 1 else join_measures(each)
                metrics[metric] = {**joint, "units": len(units)}
        found.setdefault(name, {})[value] = metrics
    return found


def _restricted(measure: dict, people: Iterable[str]) -> dict:
    """The measure of some of its people, with their own interval."""
    own = {who: measure["people"][who] for who in people if who in measure["people"]}
    means, counts = np.array(list(own.values()), np.float64).reshape(-1, 2).T
    bounds = measure.get("bounds")
    limits = None if bounds is None else (float(bounds[0]), float(bounds[1]))
    gone = ("reason", "parts", "missing", "missing_people", "note")
    kept = {key: value for key, value in measure.items() if key not in gone}
    lost = sum(measure.get("missing_people", {}).get(who, 0) for who in people)
    kept |= {"missing": lost} if lost else {}
    return {**kept, **over_sums(means * counts, counts, limits).as_measure(), "people": own}


# ---- tables ------------------------------------------------------------------------------------

Entry = tuple[str, Sequence[dict]]
"""A label, such as that of a set, and its rows."""


def group_table(entries: Iterable[Entry]) -> tuple[list[str], list[list[str]]]:
    """The head and rows of a table; no rows if nothing is known of anybody.

    A row for each group, with its numbers of people and images, and each metric's mean with its
    interval.
    """
    found = [(label, measures_by_group(rows)) for label, rows in entries]
    titles: dict[str, str] = {}
    for _, metrics in _of_all(found):
        titles |= {name: measure["title"] for name, measure in metrics.items()}
    head, rows = ["", "group", "people", "images", *titles.values()], []
    for (label, name, value), metrics in _of_all(found):
        if not metrics:  # metrics of sets alone
            continue
        people = max(measure["units"] for measure in metrics.values())
        images = max(measure["n"] for measure in metrics.values())
        cells = [cell(metrics.get(m), metrics[m]["form"] if m in metrics else "") for m in titles]
        rows.append([label, f"{name}: {value}", str(people), str(images), *cells])
    if not any(row[0] for row in rows):
        head, rows = head[1:], [row[1:] for row in rows]
    return head, rows


def not_measured(found: Iterable[tuple[str, dict[str, dict]]]) -> str:
    """Such as "Not measured: Face-Sim 3 of 40 images (in-train)."; "" if nothing is missing.

    Args:
        found: (where, described measures by metric) each.
    """
    parts = []
    for place, metrics in found:
        for measure in metrics.values():
            if lost := measure.get("missing", 0):
                count = f"{lost} of {lost + measure['n']} images"
                parts.append(f"{measure['title']} {count} ({place})")
    return f"Not measured: {'; '.join(parts)}." if parts else ""


def missing_line(entries: Iterable[Entry]) -> str:
    """How many images of each group were not measured; "" if all were."""
    found = [(label, measures_by_group(rows)) for label, rows in entries]
    return not_measured((_place_of(*of), metrics) for of, metrics in _of_all(found))


def few_line(entries: Iterable[Entry]) -> str:
    """Which groups have fewer people than intervals were checked with; "" if none has."""
    small = [
        f"{_place_of(label, name, value)} ({people})"
        for label, rows in entries
        for name, groups in measures_by_group(rows).items()
        for value, metrics in groups.items()
        if metrics and (people := max(m["units"] for m in metrics.values())) < FEW
    ]
    if not small:
        return ""
    return (
        f"Fewer than {FEW} people: {', '.join(small)}. Their intervals are not checked, and no "
        "difference of such groups is settled."
    )


def tables_by_group(entries: Sequence[Entry]) -> str:
    """The table in Markdown with the line on small groups; "" if nothing is known of anybody."""
    head, rows = group_table(entries)
    if not rows:
        return ""
    parts = ["By group of people (means, 95 % intervals over the group's people):"]
    parts += [markdown(head, rows), missing_line(entries), few_line(entries)]
    return "\n\n".join(filter(None, parts))


def rows_by_group(entries: Iterable[Entry]) -> list[dict[str, Any]]:
    """A row for each group and metric, as numbers, for CSV and JSON."""
    found = [(label, measures_by_group(rows)) for label, rows in entries]
    return [
        {"of": label, "grouped_by": name, "group": value, "metric": metric}
        | {"value": measure["mean"], "low": measure["low"], "high": measure["high"]}
        | {"reason": measure.get("reason"), "n": measure["n"], "people": measure["units"]}
        | {"missing": measure.get("missing", 0), "few": measure["units"] < FEW}
        for (label, name, value), metrics in _of_all(found)
        for metric, measure in metrics.items()
    ]


def write_groups(entries: Sequence[Entry], out: Path) -> str:
    """Write groups.csv to ``out``, if anything is known, and return the tables in Markdown."""
    (out / FILE).unlink(missing_ok=True)  # perhaps of other people
    if rows := rows_by_group(entries):
        out.mkdir(parents=True, exist_ok=True)
        write_csv(out / FILE, rows)
    return tables_by_group(entries)


def _place_of(label: str, name: str, value: str) -> str:
    """Such as "in-train age: old"."""
    return " ".join(filter(None, (label, f"{name}: {value}")))


def _of_all(found):
    """((label, what is grouped, group), measures) of all groups."""
    for label, by_name in found:
        for name, groups in by_name.items():
            for value, metrics in groups.items():
                yield (label, name, value), metrics
