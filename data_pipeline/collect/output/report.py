"""The report as data: what came in, what was dropped where and why, what is left."""

from collections import Counter
from typing import Any

import numpy as np

from data_pipeline.collect.looking import scores
from data_pipeline.collect.looking.measure import check_networks
from data_pipeline.collect.output.contents import contents_of
from data_pipeline.collect.running.run import Curated
from data_pipeline.collect.running.stages import STAGES
from data_pipeline.collect.settings import Collect, to_json
from data_pipeline.collect.split import SETS
from data_pipeline.records.schema import to_entry

FORMAT = "identity collection 1"
BINS = 30


def report_of(settings: Collect, curated: Curated) -> dict[str, Any]:
    """Plain values for JSON; all of it follows from the pictures and the settings."""
    pictures = curated.pictures
    times = sorted(picture.fetched for picture in pictures)
    entries: dict[str, list[dict[str, Any]]] = {name: [] for name in SETS}
    for job, record in zip(curated.jobs, curated.records, strict=True):
        entries[job.set].append(to_entry(record))
    return {
        "format": FORMAT,
        "name": settings.name,
        "purpose": settings.purpose,
        "fetched": [times[0], times[-1]] if times else [],
        "pictures": len(pictures),
        "names": len({picture.identity for picture in pictures}),
        "stages": _stages(curated),
        **contents_of(entries),
        "verification": {
            "used": settings.verify.rule,
            "would_drop": curated.chosen.rules,
        },
        "merged": [list(pair) for pair in curated.chosen.merged],
        "nearest_across_sets": list(curated.chosen.nearest or ()),
        "networks": [
            *check_networks(settings.measure),
            *scores.terms(settings.measure.scores),
        ],
        "histograms": _histograms(settings, curated),
        "settings": to_json(settings),
    }


def _stages(curated: Curated) -> list[dict[str, Any]]:
    by_stage: dict[str, Counter[str]] = {}
    rows: list[dict[str, Any]] = []
    for drop in curated.dropped:
        by_stage.setdefault(drop.stage, Counter())[drop.reason] += 1
    left = len(curated.pictures)
    for name in [*(s for s in by_stage if s not in STAGES), *STAGES]:
        reasons = by_stage.get(name, Counter())
        gone = sum(reasons.values())
        if (
            name not in STAGES or name == "download"
        ):  # these dropped rows before there were pictures
            rows.append({"stage": name, "in": left + gone, "out": left})
        else:
            rows.append({"stage": name, "in": left, "out": left - gone})
            left -= gone
        rows[-1]["reasons"] = dict(reasons.most_common())
    return rows


def _histograms(settings: Collect, curated: Curated) -> dict[str, dict[str, Any]]:
    """By what is measured: counts, edges, and the threshold if there is one."""
    looks = list(curated.looks.values())
    shown = {picture.key for picture in curated.pictures}
    looks = [look for look in looks if look.key in shown and not look.fault]
    faces = [max(look.faces, key=_side) for look in looks if look.faces]
    limits = settings.filter
    values: dict[str, tuple[list[Any], Any]] = {
        "shorter side, pixels": ([min(look.size) for look in looks], limits.min_side),
        "face, pixels": ([_side(face) for face in faces], limits.min_face),
        "sharpness of the face": ([face.sharpness for face in faces], limits.min_sharpness),
        "dark share of the face": ([face.dark for face in faces], limits.max_dark),
        "bright share of the face": ([face.bright for face in faces], limits.max_bright),
        "verification": (_verification(curated), getattr(settings.verify, settings.verify.rule)),
    }
    if settings.verify.rule in ("mad", "paper"):  # whose thresholds differ from group to group
        values["verification"] = (values["verification"][0], None)
    for limit in limits.limits:
        found = [look.scores[limit.score] for look in looks]
        values[limit.score] = ([v for v in found if np.isfinite(v)], limit.most)
    return {name: _histogram(found, limit) for name, (found, limit) in values.items() if found}


def _verification(curated: Curated) -> list[float]:
    kept = [job.choice.score for job in curated.jobs if job.choice.score is not None]
    gone = [drop.value for drop in curated.dropped if drop.reason == "another person"]
    return kept + gone


def _histogram(values: list[float], threshold: float | None) -> dict[str, Any]:
    counts, edges = np.histogram(np.asarray(values, np.float64), BINS)
    return {
        "counts": counts.tolist(),
        "edges": [round(float(edge), 4) for edge in edges],
        "threshold": threshold,
    }


def _side(face: Any) -> float:
    x0, y0, x1, y1 = face.box
    return min(x1 - x0, y1 - y0)
