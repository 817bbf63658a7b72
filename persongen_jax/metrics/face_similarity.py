"""Compares face embeddings: cosine, rank-1 among people, and the interval of a mean over them.

Works on embeddings (ArcFace's, arXiv 1801.07698) of any recogniser; figures from different
recognisers are never comparable.
"""

import numpy as np


def rank1(
    embeddings: np.ndarray,
    labels: np.ndarray,
    gallery: np.ndarray,
    gallery_labels: np.ndarray,
    detected: np.ndarray | None = None,
) -> dict:
    """How often the nearest of N people, by cosine, is the right one; guessing scores 1 / N.

    Args:
        embeddings: [n, d], raw; rows without a face may hold anything and count as wrong.
        labels: [n], the right person of each.
        gallery: [m, d], one or more embeddings of each person.
        gallery_labels: [m].
        detected: [n] bool; None if a face was found in all.

    Returns:
        ``rank1`` in [0, 1] and the counts ``images`` and ``identities`` (N).

    Raises:
        ValueError: no images, shapes that do not fit, an embedding that is zero or not finite, or a
            label that the gallery lacks.
    """
    embeddings, gallery = _rows(embeddings, "embeddings"), _rows(gallery, "gallery")
    labels, gallery_labels = np.asarray(labels), np.asarray(gallery_labels)
    if labels.shape != embeddings.shape[:1] or gallery_labels.shape != gallery.shape[:1]:
        raise ValueError(
            f"{len(embeddings)} embeddings with labels {labels.shape}, gallery of {len(gallery)} "
            f"with labels {gallery_labels.shape}: one label each is needed"
        )
    absent = sorted(set(labels.tolist()) - set(gallery_labels.tolist()))
    if absent:
        raise ValueError(f"not in the gallery, and so never right: {absent[:5]}")
    detected = _detected(detected, len(embeddings))
    nearest = (_unit(embeddings[detected]) @ _unit(gallery).T).argmax(1)
    right = (gallery_labels[nearest] == labels[detected]).sum()
    return {
        "rank1": float(right / len(embeddings)),
        "images": len(embeddings),
        "identities": len(np.unique(gallery_labels)),
    }


def bootstrap_interval(
    values: np.ndarray,
    identities: np.ndarray,
    *,
    confidence: float = 0.95,
    samples: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """(low, high) of the mean, by resampling whole identities with replacement.

    Images of one person resemble each other, so resampling single images would be overconfident.
    This is the percentile bootstrap over clusters (Davison and Hinkley 1997, section 3.8).

    Args:
        values: [n], such as cosines, or 0 and 1 for wrong and right.
        identities: [n], whose image each value belongs to.
        confidence: share of the resampled means between low and high.

    Raises:
        ValueError: fewer than two identities, shapes that do not fit, or values not finite.
    """
    values, identities = np.asarray(values, np.float64), np.asarray(identities)
    if values.ndim != 1 or identities.shape != values.shape:
        raise ValueError(f"values {values.shape} and identities {identities.shape}: both are [n]")
    if not np.isfinite(values).all():
        raise ValueError("values that are not finite: leave out misses, or count them as 0")
    names, which = np.unique(identities, return_inverse=True)
    if len(names) < 2:
        raise ValueError(f"{len(names)} identities say nothing about others: two are needed")
    sums, counts = np.bincount(which, values), np.bincount(which)
    draws = np.random.default_rng(seed).integers(len(names), size=(samples, len(names)))
    means = sums[draws].sum(1) / counts[draws].sum(1)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cosine of each row of [n, d] with its partner, [n]; ValueError on a zero row."""
    return (_unit(a) * _unit(b)).sum(-1)


def mean_embedding(embeddings: np.ndarray) -> np.ndarray | None:
    """The unit vector [d] along the mean of unit vectors [n, d]; None if there are none."""
    if not len(embeddings):
        return None
    mean = np.asarray(embeddings, np.float64).mean(0)
    return mean / np.linalg.norm(mean)


def _unit(rows):
    lengths = np.linalg.norm(rows, axis=-1, keepdims=True)
    bad = ~np.isfinite(lengths) | (lengths == 0)
    if bad.any():
        raise ValueError(f"embedding {bad.argmax()} (of those with a face) is zero or not finite")
    return rows / lengths


def _rows(array, name):
    array = np.asarray(array, np.float64)
    if array.ndim != 2 or not len(array):
        raise ValueError(f"{name} {array.shape}: [n, d] with at least one row is needed")
    return array


def _detected(detected, count):
    if detected is None:
        return np.ones(count, bool)
    detected = np.asarray(detected)
    # Without the check for bool, a list of indices would silently select other rows.
    if detected.shape != (count,) or detected.dtype != bool:
        raise ValueError(f"detected {detected.shape} {detected.dtype}: [{count}] bool is needed")
    return detected
