"""Scores whether the recognised attributes are the requested ones, per attribute."""

import numpy as np

from data_pipeline.attributes.vocabulary import Vocabulary

Z = 1.959964  # of a 95 % interval


def correct_attributes(
    logits: np.ndarray, values: np.ndarray, known: np.ndarray, vocabulary: Vocabulary
) -> np.ndarray:
    """1 if the recognised attribute is as requested, 0 if not, NaN if not requested: [n, K].

    An attribute is recognised as present if its logit is above 0. Within a group the largest logit
    counts, and only the requested member gets a score.

    Args:
        logits: [n, K]; values: [n, K] in 0..1; known: [n, K], above 0 for requested attributes.
    """
    logits, asked = np.asarray(logits), np.asarray(values) >= 0.5
    known = np.asarray(known) > 0
    correct = np.where(known, (logits > 0) == asked, np.nan)
    for names in vocabulary.groups.values():
        places = [vocabulary.names.index(name) for name in names]
        read = np.zeros((len(logits), len(places)), bool)
        read[np.arange(len(logits)), logits[:, places].argmax(1)] = True
        wanted = asked[:, places] & known[:, places]
        correct[:, places] = np.where(wanted, read, np.nan)
    return correct


def per_image(correct: np.ndarray) -> np.ndarray:
    """[n] share of right answers per image, from answers [n, K]; NaN if it has none."""
    answered = ~np.isnan(correct)
    n = answered.sum(1)
    return np.where(n > 0, np.where(answered, correct, 0).sum(1) / np.maximum(n, 1), np.nan)


def wilson_interval(correct: np.ndarray) -> dict:
    """{"mean", "low", "high", "n"} of independent answers [n], NaN for none: Wilson's interval."""
    correct = np.asarray(correct, np.float64)
    correct = correct[~np.isnan(correct)]
    n = len(correct)
    if not n:
        return {"mean": None, "low": None, "high": None, "n": 0}
    p = float(correct.mean())
    middle, room = p + Z**2 / (2 * n), Z * np.sqrt(p * (1 - p) / n + Z**2 / (4 * n**2))
    low, high = ((middle + sign * room) / (1 + Z**2 / n) for sign in (-1, 1))
    return {"mean": p, "low": max(0.0, float(low)), "high": min(1.0, float(high)), "n": n}


def mean_over_images(correct: np.ndarray) -> dict:
    """{"mean", "low", "high", "n"} of answers [n, K] that are dependent within an image."""
    own = per_image(correct)
    if ((~np.isnan(correct)).sum(1) <= 1).all():  # a class: answers are independent
        return wilson_interval(own)
    own = own[~np.isnan(own)]
    n = len(own)
    if n < 2:
        return {"mean": float(own.mean()) if n else None, "low": None, "high": None, "n": n}
    room = Z * own.std(ddof=1) / np.sqrt(n)
    mean = float(own.mean())
    low, high = max(0.0, float(mean - room)), min(1.0, float(mean + room))
    return {"mean": mean, "low": low, "high": high, "n": n}
