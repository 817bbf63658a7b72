"""The pose that a line of metadata.jsonl asks for.

    {"file_name": "ann/0.png", …, "keypoints": [[31.5, 40.0], …], "visibility": [true, …]}
    {"file_name": "ann/0.png", …, "pose": "poses/dancer.png"}

``keypoints`` are COCO's 17, or the last 12 of them (shoulders to ankles), in pixels of the image:
[x, y] each, or [x, y, v] where v is 0 for a joint that is not labelled, or all in one list as COCO
writes them. ``visibility``, true or false each, ``person_box`` ([x0, y0, x1, y1]) and ``area`` (of
the person's outline in square pixels) may go with them. ``pose`` names an image, relative to the
folder, whose person has the pose.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np

from persongen_jax.evaluation.folders.entries import LayoutError
from persongen_jax.metrics.pose.targets import JOINTS, Target, box_around

POSE_KEYS = ("keypoints", "visibility", "person_box", "area", "pose")
COCO = 17  # joints, the body's JOINTS last
NEEDED = "give COCO's 17 joints or the last 12 of them, [x, y] or [x, y, v] each, in pixels"


def read_pose(line: dict, folder: Path, where: str) -> Target | None:
    """The pose of a line; None if it names none.

    Args:
        folder: that ``pose`` is relative to.
        where: the line's place, for messages.

    Raises:
        LayoutError: keypoints of another form, or a pose image that does not exist.
    """
    box, area = _box(line, where), _area(line, where)
    points, image = line.get("keypoints"), line.get("pose")
    if points is not None and image is not None:
        raise LayoutError(f"{where}: keypoints and pose: give one of them")
    if image is not None:
        if not isinstance(image, str) or not (folder / image).is_file():
            raise LayoutError(f"{where}: pose {image!r}: no such image in {folder}")
        return Target(box=box, area=area, image=str(folder / image))
    if points is None:
        idle = [key for key in POSE_KEYS if line.get(key) is not None]
        if idle:
            raise LayoutError(f"{where}: {idle[0]} without keypoints: {NEEDED}")
        return None
    joints, known = _joints(points, where)
    flags = line.get("visibility")
    if flags is not None:
        right = isinstance(flags, list) and len(flags) == len(joints)
        if not right or any(type(flag) is not bool for flag in flags):
            raise LayoutError(f"{where}: visibility: give true or false for each keypoint")
        known = known & np.array(flags)
    if known.sum() > 1 and np.abs(joints[known]).max() <= 1:
        raise LayoutError(f"{where}: keypoints are all below 1: are these fractions? {NEEDED}")
    box = box or box_around(joints[known])
    return Target(joints[-JOINTS:], known[-JOINTS:], box, area)


def _joints(points: Any, where: str) -> tuple[np.ndarray, np.ndarray]:
    """[12 or 17, 2], and whether each is known."""
    try:
        array = np.array(points, np.float64)
    except (TypeError, ValueError):
        array = np.zeros(0)
    if array.ndim == 1:
        count = next((n for n in (COCO, JOINTS) if array.size in (2 * n, 3 * n)), 1)
        array = array.reshape(count, -1)
    if array.shape not in [(n, k) for n in (COCO, JOINTS) for k in (2, 3)]:
        raise LayoutError(f"{where}: keypoints: {NEEDED}")
    if not np.isfinite(array).all():
        raise LayoutError(f"{where}: keypoints that are no finite numbers: {NEEDED}")
    known = array[:, 2] > 0 if array.shape[1] == 3 else np.ones(len(array), bool)
    return array[:, :2], known


def _box(line: dict, where: str) -> tuple[float, float, float, float] | None:
    box = line.get("person_box")
    if box is None:
        return None
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
        raise LayoutError(f"{where}: person_box is {box!r}: give [x0, y0, x1, y1] in pixels")
    if box[0] >= box[2] or box[1] >= box[3]:
        raise LayoutError(f"{where}: person_box {box} is empty: give [x0, y0, x1, y1]")
    return box[0], box[1], box[2], box[3]


def _area(line: dict, where: str) -> float | None:
    area = line.get("area")
    if area is not None and not (_is_number(area) and area > 0):
        raise LayoutError(f"{where}: area is {area!r}: give the person's in square pixels")
    return area


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)
