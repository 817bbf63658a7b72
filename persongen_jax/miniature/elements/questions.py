"""What a CLIP judge is asked about an image: which of several texts fits best."""

import re
from collections.abc import Sequence

import numpy as np

from data_pipeline.drawing.captions import BACKGROUND, MOODS
from data_pipeline.drawing.pictures import EXPRESSIONS, SCENES
from persongen_jax.metrics.clip_score import ClipScore

MARK = "ELEMENT"  # stands in a text for what is asked


def scenes_of(clip: ClipScore, features: np.ndarray) -> np.ndarray:
    """Names of scenes [n]: those whose phrases' mean text feature is nearest.

    Args:
        features: of images, unit vectors [n, d]; as below.
    """
    means = []
    for scene in SCENES:
        words = {"time": "", "he": "he", "him": "him"}
        texts = [
            phrase.format(side=side, other=other, **words)
            for phrase in BACKGROUND[scene]
            for side, other in (("left", "right"), ("right", "left"))
        ]
        mean = clip.text_features(texts).mean(0)
        means.append(mean / np.linalg.norm(mean))
    return np.array(SCENES)[(features @ np.stack(means).T).argmax(1)]


def expressions_of(clip: ClipScore, features: np.ndarray) -> np.ndarray:
    """Expressions [n]; the judge knows nothing else of the caption."""
    texts = [f"a photo of a person, the face is {MOODS[name][0]}" for name in EXPRESSIONS]
    return np.array(EXPRESSIONS)[(features @ clip.text_features(texts).T).argmax(1)]


def at_the_mark(
    clip: ClipScore, features: np.ndarray, texts: Sequence[str], options: Sequence[str]
) -> np.ndarray:
    """The option [n] that fits best in the place of MARK in each image's text."""
    asked = [[with_word(text, MARK, option) for option in options] for text in texts]
    return np.array(options)[best_of(clip, features, asked)]


def best_of(clip: ClipScore, features: np.ndarray, asked: Sequence[Sequence[str]]) -> np.ndarray:
    """Which of its texts, of as many for each, fits each image best: [n] int."""
    once = list(dict.fromkeys(text for texts in asked for text in texts))  # images share prompts
    rows = {text: i for i, text in enumerate(once)}
    words = clip.text_features(once)[[[rows[text] for text in texts] for texts in asked]]
    return np.einsum("nd,ncd->nc", features, words).argmax(1)


def with_word(text: str, old: str, new: str) -> str:
    """``text`` with ``new`` for the first ``old``, and with the article that ``new`` needs."""
    article = "an" if new[0] in "aeiou" else "a"
    changed, count = re.subn(rf"\ban? {re.escape(old)}\b", f"{article} {new}", text, count=1)
    return changed if count else text.replace(old, new, 1)
