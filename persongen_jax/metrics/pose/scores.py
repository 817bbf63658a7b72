"""Scores of poses: mean square error, PCK, and OKS, each of n images.

All count the joints that are known in the target and found in the image, and are NaN where there is
none, or where the person has no extent.
"""

import numpy as np

# How exactly people mark a joint, in roots of the person's area: COCO's (cocoeval.py's
# kpt_oks_sigmas) from the shoulders on.
SIGMAS = np.array([0.79, 0.79, 0.72, 0.72, 0.62, 0.62, 1.07, 1.07, 0.87, 0.87, 0.89, 0.89]) / 10


def square_error(steps: np.ndarray, counted: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Mean squared distance [n] with coordinates in [0, 1]: BoLID's Pose_acc.

    Args:
        steps: [n, 12, 2] found minus true (x, y) in pixels.
        counted: [n, 12] bool.
        sizes: [n, 2] (height, width) of the images in pixels.
    """
    parts = steps / sizes[:, None, ::-1]
    return _mean((parts**2).sum(-1), counted)


def pck(steps: np.ndarray, counted: np.ndarray, boxes: np.ndarray, alpha: float) -> np.ndarray:
    """Share of joints [n] less than ``alpha`` times the box's longer side from where they belong.

    Percentage of correct keypoints as Yang and Ramanan define it (IEEE TPAMI 35(12), 2013, section
    6.2).

    Args:
        boxes: [n, 4] (x0, y0, x1, y1) of the person in pixels.
    """
    longer = (boxes[:, 2:] - boxes[:, :2]).max(1)
    right = np.linalg.norm(steps, axis=-1) < alpha * longer[:, None]
    return np.where(longer > 0, _mean(right, counted), np.nan)


def oks(steps: np.ndarray, counted: np.ndarray, areas: np.ndarray) -> np.ndarray:
    """Object keypoint similarity [n], 0 to 1, as COCO defines it (cocoeval.py, computeOks).

    Args:
        areas: [n], of the person's outline in square pixels.
    """
    there = areas > 0
    wide = 2 * np.where(there, areas, np.nan)[:, None] * (2 * SIGMAS) ** 2
    return np.where(there, _mean(np.exp(-(steps**2).sum(-1) / wide), counted), np.nan)


def _mean(values, counted):
    """The mean of each row's counted values; NaN where there is none."""
    n = counted.sum(1)
    return np.where(n > 0, np.where(counted, values, 0).sum(1) / np.maximum(n, 1), np.nan)
