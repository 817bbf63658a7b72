"""Pose_acc, BoLID's pose metric (its section on metrics): an error, despite its name."""

import numpy as np

from persongen_jax.metrics.pose.judge import Compared, JudgedByPose
from persongen_jax.metrics.pose.scores import square_error


class PoseError(JudgedByPose):
    """Mean squared distance of the joints, coordinates in [0, 1] of the image's sides; 0 is best.

    Of all twelve joints it is BoLID's; hidden joints, and those that are not found, do not count.
    """

    name, title, form = "pose_error", "Pose_acc (error)", "{:.5f}"
    less_is_better = True

    def score(self, poses: Compared) -> np.ndarray:
        return square_error(poses.steps, poses.counted, poses.sizes)
