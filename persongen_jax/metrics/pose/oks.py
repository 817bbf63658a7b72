"""OKS, COCO's object keypoint similarity, of the twelve joints of the body."""

import numpy as np

from persongen_jax.metrics.pose.judge import Compared, JudgedByPose
from persongen_jax.metrics.pose.scores import oks


class Oks(JudgedByPose):
    """Object keypoint similarity, 0 to 1, of the found joints (COCO's keypoint evaluation).

    By the person's area where it is known, else by 0.53 of that of the person's box.
    """

    name, title, bounds = "oks", "OKS", (0.0, 1.0)

    def score(self, poses: Compared) -> np.ndarray:
        return oks(poses.steps, poses.counted, poses.areas)
