"""OpenPose's 18 joints of a body: their limbs and colours, and how COCO's joints become them."""

import numpy as np
from numpy.typing import ArrayLike

COUNT = 18
NAMES = (
    *("nose", "neck", "right shoulder", "right elbow", "right wrist", "left shoulder"),
    *("left elbow", "left wrist", "right hip", "right knee", "right ankle", "left hip"),
    *("left knee", "left ankle", "right eye", "left eye", "right ear", "left ear"),
)
# Two joints each, in the order in which they are drawn.
LIMBS = (
    *((1, 2), (1, 5), (2, 3), (3, 4), (5, 6), (6, 7), (1, 8), (8, 9), (9, 10)),
    *((1, 11), (11, 12), (12, 13), (1, 0), (0, 14), (14, 16), (0, 15), (15, 17)),
)
# RGB: of the joint, and of the limb, of the same index.
COLOURS = (
    *((255, 0, 0), (255, 85, 0), (255, 170, 0), (255, 255, 0), (170, 255, 0), (85, 255, 0)),
    *((0, 255, 0), (0, 255, 85), (0, 255, 170), (0, 255, 255), (0, 170, 255), (0, 85, 255)),
    *((0, 0, 255), (85, 0, 255), (170, 0, 255), (255, 0, 255), (255, 0, 170), (255, 0, 85)),
)
NECK = 1
THRESHOLD = 0.3  # on the score of a joint

# COCO's index of each joint; the neck lies between COCO's shoulders.
_COCO = np.array([0, 5, 6, 8, 10, 5, 7, 9, 12, 14, 16, 11, 13, 15, 2, 1, 4, 3])
_SHOULDERS = (5, 6)
_BODY = slice(5, 17)  # of COCO's 17, what records hold
_FACE = (2, 1, 0)  # COCO's indices of the first three landmarks


def from_coco17(
    joints: ArrayLike, scores: ArrayLike, threshold: float = THRESHOLD
) -> tuple[np.ndarray, np.ndarray]:
    """COCO's 17 joints as body-18: (joints [..., 18, 2] float64, seen [..., 18] bool).

    The neck is the mean of the shoulders, and is seen only if the scores of both exceed the
    threshold; of every other joint, if its score reaches it.

    Args:
        joints: [..., 17, 2] (x, y) in any unit. scores: [..., 17], 0 to 1.
    """
    joints, scores = np.asarray(joints, np.float64), np.asarray(scores)
    points, seen = joints[..., _COCO, :], scores[..., _COCO] >= threshold
    points[..., NECK, :] = joints[..., _SHOULDERS, :].mean(-2)
    seen[..., NECK] = (scores[..., _SHOULDERS] > threshold).all(-1)
    return points, seen


def to_coco17(
    keypoints: ArrayLike, visible: ArrayLike | None = None, landmarks: ArrayLike | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """What records hold of a person as COCO's 17: (joints [17, 2], scores [17], 1 if known, or 0).

    Args:
        keypoints: [12, 2] COCO's 5 to 16. visible: [12] bool; None: all of them.
        landmarks: [5, 2] in ArcFace's order, of which eyes and nose are taken; None: unknown.
            Its first eye, at the left of the image, is the person's right one. Ears are not
            among them.
    """
    joints, scores = np.zeros((17, 2)), np.zeros(17)
    joints[_BODY] = keypoints
    scores[_BODY] = 1 if visible is None else np.asarray(visible, bool)
    if landmarks is not None:
        joints[_FACE, :], scores[list(_FACE)] = np.asarray(landmarks)[:3], 1
    return joints, scores


def inside(joints: ArrayLike, shape: tuple[int, int]) -> np.ndarray:
    """Which joints [..., 2], in pixels, lie inside an image of ``shape`` (height, width), bool."""
    joints = np.asarray(joints)
    return ((joints >= 0) & (joints < [shape[1], shape[0]])).all(-1)
