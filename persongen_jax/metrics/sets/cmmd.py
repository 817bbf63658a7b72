"""CMMD: the MMD in CLIP's image embeddings (Jayasumana et al., arXiv 2401.09603, section 4).

As google-research's code: ViT-L/14 at 336 pixels, embeddings of length 1, a Gaussian kernel with
σ = 10, all pairs, times 1000. Sound with few images, unlike FID.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from persongen_jax.metrics.feature_judges import CmmdJudge
from persongen_jax.metrics.intervals.jackknife import Groups, jackknife_interval
from persongen_jax.metrics.judges import Judges
from persongen_jax.metrics.sets.compared import ComparedSets
from persongen_jax.metrics.sets.mmd import kernel_sums

SIGMA, SCALE = 10.0, 1000.0
PUBLISHED = (336, 14, 1024)  # pixels, patch and width of CMMD's image tower


def gaussian(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """exp(-|x - y|² / (2 σ²)) of [n, d] and [m, d], [n, m]."""
    squares = np.square(x).sum(1)[:, None] + np.square(y).sum(1) - 2 * x @ y.T
    return np.exp(-squares / (2 * SIGMA**2))


class Cmmd(ComparedSets):
    """1000 times the MMD², at least 0; with another tower than CMMD's the title says so."""

    name, title, form = "cmmd", "CMMD", "{:.3f}"
    judge_key = "cmmd_clip"

    def __init__(self, config: ConfigDict, judges: Judges):
        self.encoder = self.open_judge(config, judges)
        self.judge = config.get("cmmd_clip") or config.clip

    def open_judge(self, config: ConfigDict, judges: Judges) -> CmmdJudge:
        clip = judges.cmmd.clip
        tower = clip.vision_config
        self.tower = tuple(tower[key] for key in ("image_size", "patch_size", "hidden_size"))
        if self.tower != PUBLISHED or clip.family != "CLIP":
            kind = "" if clip.family == "CLIP" else f"{clip.family}, "
            self.title = f"CMMD ({kind}patches of {self.tower[1]} at {self.tower[0]} px)"
        return judges.cmmd

    def distance(self, a: np.ndarray, b: np.ndarray) -> float:
        return SCALE * kernel_sums(gaussian, a, b).biased()

    def figures(self, a: np.ndarray, b: np.ndarray) -> tuple[float, Mapping[str, Any]]:
        return self.distance(a, b), {"pixels": self.tower[0], "patch": self.tower[1]}

    def interval(
        self, value: float, a: np.ndarray, b: np.ndarray, groups: Groups
    ) -> tuple[float, float] | None:
        sums = kernel_sums(gaussian, a, b, (groups.rows[0], groups.rows[1]))

        def without(group):
            left = SCALE * sums.without(group).biased()
            return None if np.isnan(left) else left

        return jackknife_interval(value, without, groups.people)
