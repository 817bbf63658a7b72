"""Filter: is the picture large, sharp and bright enough, and does it show one main face?

The thesis (section 4.3) and PhotoMaker (arXiv 2312.04461, section 3.3) drop a picture if a side is
under 512 pixels or no face has 256; the other conditions are ours. Everything is decided from
stored measurements.
"""

import math
from collections.abc import Sequence

import numpy as np

from data_pipeline.collect.choices import Choice, Drop
from data_pipeline.collect.looking.looks import Face
from data_pipeline.collect.settings import Filter

STAGE = "filter"


def filter_pictures(choices: Sequence[Choice], settings: Filter) -> tuple[list[Choice], list[Drop]]:
    """The pictures that can be used, with their faces that can be the person's, and the others."""
    kept: list[Choice] = []
    dropped: list[Drop] = []
    for choice in choices:
        found = filter_picture(choice, settings)
        if isinstance(found, Drop):
            dropped.append(found)
        else:
            kept.append(found)
    return kept, dropped


def filter_picture(choice: Choice, settings: Filter) -> Choice | Drop:
    """The picture with its possible faces, or why it cannot be used: the first reason of many."""
    reason = _of_picture(choice, settings)
    if reason is not None:
        return choice.drop(STAGE, *reason)
    faces = sorted(range(len(choice.look.faces)), key=lambda n: -_area(choice.look.faces[n]))
    if not faces:
        return choice.drop(STAGE, "no face")
    faults = {n: _of_face(choice.look.faces[n], settings) for n in faces}
    possible = [n for n in faces if faults[n] is None]
    if not possible:
        return choice.drop(STAGE, *(faults[faces[0]] or ("no face",)))
    if settings.max_second is not None:
        areas = [_area(choice.look.faces[n]) for n in faces]
        main = _area(choice.look.faces[possible[0]])
        others = [area for n, area in zip(faces, areas, strict=True) if n != possible[0]]
        second = max(others, default=0.0) / main
        if second > settings.max_second:
            return choice.drop(STAGE, "several faces", round(second, 3), settings.max_second)
    return choice.with_(faces=tuple(possible), face=possible[0])


def _of_picture(choice: Choice, settings: Filter):
    """(reason, value, threshold) for the whole picture; None if nothing is wrong with it."""
    look = choice.look
    if look.fault:
        return "unreadable", look.fault, None
    small, large = min(look.size), max(look.size)
    if _below(small, settings.min_side):
        return "side too short", small, settings.min_side
    if _above(large / max(small, 1), settings.max_aspect):
        return "too long a strip", round(large / max(small, 1), 3), settings.max_aspect
    if _below(look.colour, settings.min_colour):
        return "grey", look.colour, settings.min_colour
    for limit in settings.limits:
        value = look.scores[limit.score]
        if not value <= limit.most:  # also of a score that is no number
            said = value if math.isfinite(value) else str(value)
            return too_high(limit.score), said, limit.most
    return None


def too_high(score: str) -> str:
    """The reason of a plug-in's limit."""
    return f"{score} too high"


def _of_face(face: Face, settings: Filter):
    x0, y0, x1, y1 = face.box
    side = round(min(x1 - x0, y1 - y0), 2)
    checks = (
        (_below(side, settings.min_face), "face too small", side, settings.min_face),
        (_below(face.score, settings.min_score), "face unsure", face.score, settings.min_score),
        (
            _below(face.sharpness, settings.min_sharpness),
            *("blurred", face.sharpness, settings.min_sharpness),
        ),
        (_above(face.dark, settings.max_dark), "too dark", face.dark, settings.max_dark),
        (_above(face.bright, settings.max_bright), "too bright", face.bright, settings.max_bright),
        (
            _above(abs(roll(face)), settings.max_roll),
            *("head tilted", abs(roll(face)), settings.max_roll),
        ),
        (_above(yaw(face), settings.max_yaw), "in profile", yaw(face), settings.max_yaw),
    )
    return next((fault[1:] for fault in checks if fault[0]), None)


def roll(face: Face) -> float:
    """Degrees by which the line through the eyes is turned, clockwise in the picture."""
    (x0, y0), (x1, y1) = face.landmarks[:2]
    return round(math.degrees(math.atan2(y1 - y0, x1 - x0)), 2)


def yaw(face: Face) -> float:
    """How far the nose lies from the middle of the eyes along their line, in their distances.

    About 0 from the front; 0.5 and more where the nose covers an eye.
    """
    left, right, nose = np.asarray(face.landmarks[:3])
    across = right - left
    length = float(across @ across)
    if length == 0:
        return math.inf
    return round(abs(float((nose - (left + right) / 2) @ across)) / length, 3)


def _area(face: Face) -> float:
    x0, y0, x1, y1 = face.box
    return (x1 - x0) * (y1 - y0)


def _below(value: float, least: float | None) -> bool:
    return least is not None and not value >= least  # so that no number passes for nothing


def _above(value: float, most: float | None) -> bool:
    return most is not None and not value <= most
