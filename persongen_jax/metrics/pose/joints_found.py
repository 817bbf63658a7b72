"""How many of the joints that are to be seen are found: to be read with the other pose metrics.

They count found joints only, and a mean over these rewards a model for hiding difficult ones.
"""

import numpy as np

from persongen_jax.metrics.pose.judge import Compared, JudgedByPose


class JointsFound(JudgedByPose):
    """Share of the known joints that the pose network finds; NaN where none is known."""

    name, title, form, bounds = "joints_found", "joints found", "{:.1%}", (0.0, 1.0)

    def score(self, poses: Compared) -> np.ndarray:
        n = poses.known.sum(1)
        return np.where(n > 0, poses.counted.sum(1) / np.maximum(n, 1), np.nan)
