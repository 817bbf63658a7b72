"""The Fréchet distance of Heusel et al. (arXiv 1706.08500, section 2), in a CLIP's image features.

Not FID: FID's features are Inception's, and the figures are not comparable. Here the judge CLIP's
image embeddings of length 1 replace them. Like FID it is biased by the number of images, and with
fewer than d of them the covariances are singular: only compare figures for equal numbers of images.
"""

import numpy as np

from persongen_jax.metrics.base import Generated, Known, NoFigure, Values
from persongen_jax.metrics.judged import JudgedByClip


class FrechetClip(JudgedByClip):
    """Distance of the generated images to all real images of the set's people, at least 0.

    Both go through CLIP's preprocessing: short side resized, centre cropped. The fact "n_real" is
    the number of real images.

    Raises, when called:
        NoFigure: fewer than two images on either side.
    """

    name, title, form, over = "frechet_clip", "Fréchet (CLIP)", "{:.4f}", "set"
    less_is_better = True

    def __call__(self, generated: Generated, known: Known) -> Values:
        real = self.clip.real_features(known.people)
        n, m = len(generated.images), len(real)
        if min(n, m) < 2:
            raise NoFigure(f"{n} generated and {m} real images: give at least two of either")
        distance = frechet_distance(self.clip.features(generated), real)
        return Values(distance, n=n, facts={"n_real": m})


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Distance of two normal distributions fitted to features [n, d] and [m, d], in float64.

    |μ₁ - μ₂|² + tr(Σ₁ + Σ₂ - 2 (Σ₁ Σ₂)^½), covariances with n - 1. With A and B the centred
    features over √(n - 1) and √(m - 1), the eigenvalues of Σ₁ Σ₂ = AᵀA BᵀB are the squared singular
    values of A Bᵀ, and so the root's trace is the sum of these: exact also where the covariances
    are singular, and no larger than the number of images.

    Raises:
        ValueError: fewer than two rows, or widths that differ.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise ValueError(f"features {a.shape} and {b.shape}: [n, d] and [m, d], n and m above 1")
    shift = a.mean(0) - b.mean(0)
    first, second = (_root_of_covariance(rows) for rows in (a, b))
    roots = np.linalg.svd(first @ second.T, compute_uv=False).sum()
    spread = np.square(first).sum() + np.square(second).sum()
    return float(max(shift @ shift + spread - 2 * roots, 0.0))


def _root_of_covariance(rows):
    """A with AᵀA the covariance of [n, d]; at most d rows."""
    centred = (rows - rows.mean(0)) / np.sqrt(len(rows) - 1)
    return np.linalg.qr(centred, mode="r") if len(rows) > rows.shape[1] else centred
