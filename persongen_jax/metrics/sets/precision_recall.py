"""Precision and recall of sets (arXiv 1904.06991) in our classifier's features.

Precision: the share of generated images that lie among the real ones; recall: the share of real
images that lie among the generated ones. "Among" means inside one of the balls around the members
of a set whose radius is the distance to the member's third nearest neighbour. Both depend on the
numbers of images.
"""

import numpy as np

from persongen_jax.metrics.base import Values
from persongen_jax.metrics.judged import JudgedByClassifier

NEIGHBOUR = 3
AT_ONCE = 1024  # rows of a table of distances


class _SetMetric(JudgedByClassifier):
    form, over = "{:.3f}", "set"

    def __call__(self, generated, known):
        real = self.attributes.of_people(known.people)
        _, features = self.attributes.score_generated(generated)
        if min(len(real), len(features)) <= NEIGHBOUR:
            return None
        value = self.compare(features, real)
        return Values(value, n=len(features), facts={"n_real": len(real)})


class PrecisionAttributes(_SetMetric):
    """Share of the generated images that are like real ones, 0 to 1."""

    name, title = "precision_attributes", "precision (attributes)"

    @staticmethod
    def compare(generated: np.ndarray, real: np.ndarray) -> float:
        return coverage(generated, real)


class RecallAttributes(_SetMetric):
    """Share of the real images that are like generated ones, 0 to 1."""

    name, title = "recall_attributes", "recall (attributes)"

    @staticmethod
    def compare(generated: np.ndarray, real: np.ndarray) -> float:
        return coverage(real, generated)


def coverage(points: np.ndarray, members: np.ndarray) -> float:
    """Share of ``points`` [n, d] inside at least one ball around the ``members`` [m, d].

    A ball reaches to its member's third nearest neighbour, not counting the member itself.
    """
    points, members = np.asarray(points, np.float64), np.asarray(members, np.float64)
    reach = np.concatenate(
        [np.partition(part, NEIGHBOUR, axis=1)[:, NEIGHBOUR] for part in _squares(members, members)]
    )
    return float(np.concatenate([(p <= reach).any(1) for p in _squares(points, members)]).mean())


def _squares(a, b):
    """Squared distances [rows, m] of a [n, d] to b [m, d], some rows at a time."""
    for start in range(0, len(a), AT_ONCE):
        part = a[start : start + AT_ONCE]
        squares = (part**2).sum(1)[:, None] + (b**2).sum(1) - 2 * part @ b.T
        yield np.maximum(squares, 0)
