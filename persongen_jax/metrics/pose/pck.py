"""PCK, the percentage of correct keypoints.

Yang and Ramanan, IEEE TPAMI 35(12), 2013, section 6.2.
"""

import numpy as np

from persongen_jax.metrics.base import Generated, Known, Values
from persongen_jax.metrics.pose.judge import Compared, JudgedByPose
from persongen_jax.metrics.pose.scores import pck

ALPHA = 0.1


class Pck(JudgedByPose):
    """Share of the found joints within a tenth of the longer side of the person's box.

    The facts "alpha" and "scale" say so.
    """

    name, title, form, bounds = "pck", f"PCK@{ALPHA} (box)", "{:.1%}", (0.0, 1.0)

    def score(self, poses: Compared) -> np.ndarray:
        return pck(poses.steps, poses.counted, poses.boxes, ALPHA)

    def __call__(self, generated: Generated, known: Known) -> Values:
        found = super().__call__(generated, known)
        facts = {"alpha": ALPHA, "scale": "longer side of the person's box"}
        return Values(found.values, facts={**found.facts, **facts})
