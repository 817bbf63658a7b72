"""KID: the MMD in Inception's features (Bińkowski et al., arXiv 1801.01401, section 4).

As torch-fidelity computes it: the mean of 100 subsets, drawn without replacement. Unlike FID it is
not biased by the numbers of images, and it can be below 0.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from persongen_jax.metrics.intervals.jackknife import Groups, jackknife_interval
from persongen_jax.metrics.sets.fid import JudgedByInception
from persongen_jax.metrics.sets.mmd import cubic, kernel_sums

SUBSETS, SUBSET_SIZE, SEED = 100, 1000, 2020  # torch-fidelity's


class Kid(JudgedByInception):
    """The mean of the subsets' MMD², unbiased.

    Facts: "subset_size", 1000 or as many images as there are of either kind, and "subset_std", the
    deviation over subsets, which tools print as ±. It says nothing about other people; the interval
    does, by the MMD² of all images.
    """

    name, title, form = "kid", "KID", "{:.5f}"
    least = None

    def distance(self, a: np.ndarray, b: np.ndarray) -> float:
        return float(subset_distances(a, b).mean())

    def few(self, n: int, m: int, d: int) -> str:
        size = min(n, m)
        if size >= SUBSET_SIZE:
            return ""
        return f"subsets of {size} images: there are no {SUBSET_SIZE}"

    def figures(self, a: np.ndarray, b: np.ndarray) -> tuple[float, Mapping[str, Any]]:
        found = subset_distances(a, b)
        facts = {
            "variant": self.variant,
            "features": a.shape[1],
            "subset_size": min(len(a), len(b), SUBSET_SIZE),
            "subset_std": float(found.std()),
        }
        return float(found.mean()), facts

    def interval(
        self, value: float, a: np.ndarray, b: np.ndarray, groups: Groups
    ) -> tuple[float, float] | None:
        sums = kernel_sums(cubic, a, b, (groups.rows[0], groups.rows[1]))

        def without(group):
            left = sums.without(group).unbiased()
            return None if np.isnan(left) else left

        return jackknife_interval(value, without, groups.people)


def subset_distances(
    a: np.ndarray,
    b: np.ndarray,
    subsets: int = SUBSETS,
    size: int = SUBSET_SIZE,
    seed: int = SEED,
) -> np.ndarray:
    """MMD² [subsets] of rows drawn from [n, d] and [m, d]; fewer than ``size`` if there are not.

    Raises:
        ValueError: fewer than two rows of either.
    """
    size = min(size, len(a), len(b))
    if size < 2:
        raise ValueError(f"features {a.shape} and {b.shape}: at least two rows of each are needed")
    rng = np.random.RandomState(seed)
    found = []
    for _ in range(subsets):
        # In the tool's order, so that a seed means the same subsets.
        first = rng.choice(len(a), size, replace=False)
        second = rng.choice(len(b), size, replace=False)
        found.append(kernel_sums(cubic, a[first], b[second]).unbiased())
    return np.array(found)
