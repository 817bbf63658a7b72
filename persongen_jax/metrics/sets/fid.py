"""FID: the Fréchet distance in Inception's features (Heusel et al., arXiv 1706.08500, section 2).

The public tools resize differently and give different figures (Parmar et al., arXiv 2104.11222), so
that the title says whose figure it is. It is biased by the numbers of images (Bińkowski et al.,
arXiv 1801.01401, section 3): only figures of equal numbers compare.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from persongen_jax.metrics.feature_judges import InceptionJudge
from persongen_jax.metrics.judges import Judges
from persongen_jax.metrics.sets.compared import INSTEAD, ComparedSets
from persongen_jax.metrics.sets.frechet_clip import frechet_distance


class JudgedByInception(ComparedSets):
    """Compares the features of ``config.inception``, resized as ``config.fid_variant`` says."""

    judge_key = "inception"

    def open_judge(self, config: ConfigDict, judges: Judges) -> InceptionJudge:
        self.variant = judges.inception.embedder.variant
        self.title = f"{type(self).title} ({self.variant})"
        return judges.inception

    def figures(self, a: np.ndarray, b: np.ndarray) -> tuple[float, Mapping[str, Any]]:
        facts = {"variant": self.variant, "features": a.shape[1]}
        return self.distance(a, b), facts


class Fid(JudgedByInception):
    """The Fréchet distance, at least 0; the interval is around the biased figure."""

    name, title, form = "fid", "FID", "{:.2f}"

    def distance(self, a: np.ndarray, b: np.ndarray) -> float:
        return frechet_distance(a, b)

    def few(self, n: int, m: int, d: int) -> str:
        if min(n, m) > d:
            return ""
        return (
            f"of {n} generated and {m} real images: with {d} or fewer of either it "
            f"depends on their number more than on their likeness; {INSTEAD}"
        )
