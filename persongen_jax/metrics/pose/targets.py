"""The pose that a generated image was to have."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from data_pipeline.pictures.transforms import plan_crop
from data_pipeline.records.schema import Record

JOINTS = 12  # COCO's 5 to 16: shoulders, elbows, wrists, hips, knees, ankles; left before right
# Area of a person's outline in that of the box around it, where no outline is known: the factor
# with which CrowdPose (Li et al., arXiv 1812.00324) and others evaluate without segmentations.
OUTLINE = 0.53


@dataclass(frozen=True)
class Target:
    """A pose, in pixels of the generated image, x to the right and y down.

    Attributes:
        joints: [12, 2], where ``known``; None if they are to be found in ``image``.
        known: [12] bool, whether a joint is known, and visible.
        box: of the person, (x0, y0, x1, y1); None: the box around the known joints.
        area: of the person's outline in square pixels; None: a part of the box.
        image: path of an image whose person has the pose; "" if there is none.
    """

    joints: np.ndarray | None = None
    known: np.ndarray | None = None
    box: tuple[float, float, float, float] | None = None
    area: float | None = None
    image: str = ""


def of_record(record: Record, shape: tuple[int, int], size: tuple[int, int]) -> Target | None:
    """The pose in a record's image as the method reads it, cropped to ``size``.

    Args:
        shape: (height, width) of the record's image; size: of the generated ones, likewise.

    Returns:
        None if the record has no keypoints. The box has the face in it.
    """
    if record.keypoints is None:
        return None
    crop = plan_crop(shape, record.face_box, size)
    joints = np.asarray(crop.move(record.keypoints), np.float64)
    known = np.ones(JOINTS, bool) if record.visibility is None else np.array(record.visibility)
    known &= inside(joints, size)
    corners = joints[known]
    if record.face_box is not None:
        face = np.asarray(crop.move(np.reshape(record.face_box, (2, 2))), np.float64)
        corners = np.concatenate([corners, face])
    return Target(joints, known, box_around(corners))


def as_inputs(targets: Sequence[Target | None]) -> dict[str, np.ndarray]:
    """``Generated.inputs`` of images' targets [n]; {} if there are none at all.

    "pose" [n, 12, 2] and "pose_known" [n, 12] bool; "pose_box" [n, 4] and "pose_area" [n], NaN
    where they are not known; "pose_image" [n], paths or "".
    """
    if all(target is None for target in targets):
        return {}
    each = [target or Target() for target in targets]
    nothing = np.zeros((JOINTS, 2)), np.zeros(JOINTS, bool), (np.nan,) * 4
    return {
        "pose": np.stack([nothing[0] if t.joints is None else t.joints for t in each]),
        "pose_known": np.stack([nothing[1] if t.known is None else t.known for t in each]),
        "pose_box": np.array([t.box or nothing[2] for t in each], np.float64),
        "pose_area": np.array([np.nan if t.area is None else t.area for t in each], np.float64),
        "pose_image": np.array([t.image for t in each], str),
    }


def inside(joints: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Whether points [n, 2] lie in an image of ``size`` (height, width): [n] bool."""
    height, width = size
    return np.asarray(((joints >= 0) & (joints <= (width, height))).all(-1))


def box_around(points: np.ndarray) -> tuple[float, float, float, float] | None:
    """(x0, y0, x1, y1) of points [n, 2]; None of no points."""
    if not len(points):
        return None
    (x0, y0), (x1, y1) = points.min(0).tolist(), points.max(0).tolist()
    return x0, y0, x1, y1
