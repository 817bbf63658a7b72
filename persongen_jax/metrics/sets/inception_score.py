"""Inception Score (Salimans et al., arXiv 1606.03498, section 4): clear and varied objects?

It compares with no real image, and its classes are ImageNet's, in which people do not appear
(Barratt and Sharma, arXiv 1801.01973): for people it is given because papers do.
"""

import numpy as np
from ml_collections import ConfigDict
from scipy.special import log_softmax

from persongen_jax.metrics.base import Generated, Known, Metric, NoFigure, Values
from persongen_jax.metrics.judged import check_finite
from persongen_jax.metrics.judges import Judges
from persongen_jax.metrics.sets.compared import INSTEAD

SPLITS, SEED = 10, 2020  # torch-fidelity's
ENOUGH = 5000  # images in the paper's figures are 50,000; below this it grows with their number


class InceptionScore(Metric):
    """The mean over ten splits of exp(mean KL(p(y|x) ‖ p(y))), from 1 on.

    As torch-fidelity computes it, by logits without a bias. Fact: "split_std", the deviation over
    splits, which tools print as ±; it is no interval; and a "note" below 5000 images.

    Raises, when called:
        NoFigure: fewer than ten images.
    """

    name, title, form, over = "inception_score", "Inception Score", "{:.2f}", "set"
    judge_key = "inception"

    def __init__(self, config: ConfigDict, judges: Judges):
        self.encoder, self.judge = judges.inception, config.inception
        self.variant = self.encoder.embedder.variant
        self.title = f"{type(self).title} ({self.variant})"

    def networks(self) -> tuple:
        return self.encoder.networks()

    def __call__(self, generated: Generated, known: Known) -> Values:
        count = len(generated.images)
        if count < SPLITS:
            raise NoFigure(f"it needs {SPLITS} images, and there are {count}; {INSTEAD}")
        logits = self.encoder.logits(generated)
        check_finite(self, logits, "the generated images")
        scores = split_scores(logits)
        facts = {"variant": self.variant, "splits": SPLITS, "split_std": float(scores.std())}
        if count < ENOUGH:
            facts["note"] = f"of {count} images: it grows with their number; {INSTEAD}"
        return Values(float(scores.mean()), n=count, facts=facts)


def split_scores(logits: np.ndarray, splits: int = SPLITS, seed: int = SEED) -> np.ndarray:
    """The score of each split [splits] of logits [n, classes], after a shuffle; n at least splits.

    Raises:
        ValueError: fewer rows than splits.
    """
    count = len(logits)
    if count < splits:
        raise ValueError(f"logits {logits.shape}: at least {splits} rows are needed, one a split")
    order = np.random.RandomState(seed).permutation(count)
    logs = log_softmax(np.asarray(logits, np.float64)[order], axis=1)
    scores = []
    for i in range(splits):
        part = logs[i * count // splits : (i + 1) * count // splits]
        chances = np.exp(part)
        gaps = chances * (part - np.log(chances.mean(0, keepdims=True)))
        scores.append(np.exp(gaps.sum(1).mean()))
    return np.array(scores)
