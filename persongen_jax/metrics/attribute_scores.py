"""Whether attributes are read as they were asked for, per attribute."""

import numpy as np

from data_pipeline.attributes.vocabulary import Vocabulary

Z = 1.959964  # of a 95 % interval


def right(logits, values, known, vocabulary: Vocabulary) -> np.ndarray:
    """1 where an attribute is read as asked, 0 where not, NaN where nothing was asked: [n, K].

    An attribute is read as present where its logit is above 0. Of a group the largest logit is
    read, and the answer counts for the member that was asked for alone.

    Args:
        logits: [n, K]; values: [n, K] in 0..1; known: [n, K], above 0 where something was asked.
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


def of_pictures(correct) -> np.ndarray:
    """[n] the share of right answers of each picture, of answers [n, K]; NaN where none is."""
    answered = ~np.isnan(correct)
    n = answered.sum(1)
    return np.where(n > 0, np.where(answered, correct, 0).sum(1) / np.maximum(n, 1), np.nan)


def share(correct) -> dict:
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


def mean_of_pictures(correct) -> dict:
    """{"mean", "low", "high", "n"} of answers [n, K], of which a picture's depend on each other."""
    own = of_pictures(correct)
    if ((~np.isnan(correct)).sum(1) <= 1).all():  # a class: answers are independent
        return share(own)
    own = own[~np.isnan(own)]
    n = len(own)
    if n < 2:
        return {"mean": float(own.mean()) if n else None, "low": None, "high": None, "n": n}
    room = Z * own.std(ddof=1) / np.sqrt(n)
    mean = float(own.mean())
    low, high = max(0.0, float(mean - room)), min(1.0, float(mean + room))
    return {"mean": mean, "low": low, "high": high, "n": n}
