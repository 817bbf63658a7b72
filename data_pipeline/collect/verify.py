"""Verify: do the pictures of a name show one person, and which of them do not?

All rules look at one face per picture, the one with the largest sum of similarities to the faces of
the other pictures (PhotoMaker, arXiv 2312.04461, section 3.3). The paper then drops sums that lie
outside of 8 standard deviations of their mean; in a group of n no value lies further from it than
(n - 1) / √n, so that below 66 pictures the rule drops nothing. The default is the cosine with the
coordinate-wise median of the other pictures' embeddings: up to half of them may be strangers.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from data_pipeline.collect.choices import Choice, Drop
from data_pipeline.collect.settings import Verify

STAGE = "verify"
MAD = 1.4826  # makes the median absolute deviation the standard deviation of a normal distribution


@dataclass(frozen=True)
class Verdict:
    """scores [n], higher is surer; the threshold; and which are kept, [n] bool."""

    scores: np.ndarray
    threshold: float
    kept: np.ndarray


def choose_faces(groups: Sequence[np.ndarray]) -> list[int]:
    """Per picture, from the embeddings [faces, d] of each, the face that is most like the others.

    The first of a picture that is alone.
    """
    total = np.sum([group.sum(0) for group in groups], axis=0)
    # Distances and cosines order pairs alike; sums of cosines need no n x n matrix.
    return [int(np.argmax(group @ (total - group.sum(0)))) for group in groups]


def median_direction(embeddings: np.ndarray) -> np.ndarray:
    """The coordinate-wise median of [n, d], of length 1."""
    return _unit(np.median(embeddings, axis=0))


def median_rule(embeddings: np.ndarray, least: float) -> Verdict:
    """Cosine of each with the median of the others: [n, d] of length 1."""
    if len(embeddings) < 2:
        return _verdict(np.ones(len(embeddings)), least)
    scores = np.sum(embeddings * _unit(medians_of_others(embeddings)), axis=1)
    return _verdict(scores, least)


def mean_cosine_rule(embeddings: np.ndarray, least: float) -> Verdict:
    """Mean cosine of each with the others."""
    n = len(embeddings)
    if n < 2:
        return _verdict(np.ones(n), least)
    sums = embeddings @ embeddings.sum(0) - np.sum(embeddings**2, axis=1)
    return _verdict(sums / (n - 1), least)


def mad_rule(embeddings: np.ndarray, times: float) -> Verdict:
    """Summed L2 similarity, at least median - times · 1.4826 · MAD."""
    sums = summed_similarity(embeddings)
    middle = np.median(sums)
    return _verdict(sums, float(middle - times * MAD * np.median(np.abs(sums - middle))))


def paper_rule(embeddings: np.ndarray, times: float) -> Verdict:
    """PhotoMaker's: summed L2 similarity, at least mean - times · standard deviation."""
    sums = summed_similarity(embeddings)
    return _verdict(sums, float(sums.mean() - times * sums.std()) if len(sums) else 0.0)


RULES: dict[str, Callable[[np.ndarray, float], Verdict]] = {
    "median": median_rule,
    "mean_cosine": mean_cosine_rule,
    "mad": mad_rule,
    "paper": paper_rule,
}


def verify_person(
    choices: Sequence[Choice], settings: Verify
) -> tuple[list[Choice], list[Drop], dict[str, int]]:
    """One name's pictures that show the person, the others, and how many each rule would drop."""
    if not choices:
        return [], [], dict.fromkeys(RULES, 0)
    chosen = choose_faces([choice.embeddings[list(choice.faces)] for choice in choices])
    choices = [c.with_(face=c.faces[n]) for c, n in zip(choices, chosen, strict=True)]
    embeddings = np.stack([choice.embedding for choice in choices])
    verdicts = {name: rule(embeddings, getattr(settings, name)) for name, rule in RULES.items()}
    verdict = verdicts[settings.rule]
    kept, dropped = [], []
    for choice, score, stays in zip(choices, verdict.scores, verdict.kept, strict=True):
        score = round(float(score), 4)
        if stays:
            kept.append(choice.with_(score=score))
        else:
            least = round(verdict.threshold, 4)
            dropped.append(choice.drop(STAGE, "another person", score, least))
    return kept, dropped, {name: int((~v.kept).sum()) for name, v in verdicts.items()}


def medians_of_others(embeddings: np.ndarray) -> np.ndarray:
    """[n, d]: row i is the coordinate-wise median of all rows but i, in O(n log n)."""
    n = len(embeddings)
    order = np.argsort(embeddings, axis=0, kind="stable")
    ranked = np.take_along_axis(embeddings, order, axis=0)
    rank = np.empty_like(order)
    np.put_along_axis(rank, order, np.broadcast_to(np.arange(n)[:, None], order.shape), axis=0)
    low, high = (n - 2) // 2, (n - 1) // 2  # the middle of n - 1 values
    parts = [np.take_along_axis(ranked, k + (k >= rank), axis=0) for k in (low, high)]
    return (parts[0] + parts[1]) / 2


def summed_similarity(embeddings: np.ndarray) -> np.ndarray:
    """[n]: of each to the others, 1 - distance / 2 of two vectors of length 1, 0 to 1 each."""
    cosine = np.clip(embeddings @ embeddings.T, -1, 1)
    similar = 1 - np.sqrt(np.maximum(2 - 2 * cosine, 0)) / 2
    np.fill_diagonal(similar, 0)
    return similar.sum(1)


def _verdict(scores: np.ndarray, threshold: float) -> Verdict:
    scores = np.asarray(scores, np.float64)
    return Verdict(scores, threshold, scores >= threshold)


def _unit(vectors: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.where(length == 0, 1, length)
