"""Scores whether the recognised attributes are the requested ones, per attribute."""

import numpy as np

from data_pipeline.attributes.vocabulary import Vocabulary
from persongen_jax.metrics.intervals.limits import SHARE
from persongen_jax.metrics.intervals.people import over_answers, over_people


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


def mean_over_images(correct: np.ndarray) -> dict:
    """{"mean", "low", "high", "n"} of answers [n, K] that are dependent within an image."""
    own = per_image(correct)
    own = own[~np.isnan(own)]
    if ((~np.isnan(correct)).sum(1) <= 1).all():  # a class: answers are independent
        return over_answers(own).as_measure()
    return over_people(own, np.arange(len(own)), SHARE).as_measure()
