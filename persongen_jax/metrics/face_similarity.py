"""Compares face embeddings: cosine, and rank-1 among people.

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
