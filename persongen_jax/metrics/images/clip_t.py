"""CLIP-T: does the image show what the prompt says (Radford et al., arXiv 2103.00020, sec. 3.1)?"""

import numpy as np
from ml_collections import ConfigDict

from persongen_jax.metrics.base import Generated, Known, Values
from persongen_jax.metrics.clip_score import NO_TEXT
from persongen_jax.metrics.judged import JudgedByClip
from persongen_jax.metrics.judges import Judges, NoJudge


class ClipT(JudgedByClip):
    """100 times the cosine of CLIP's embeddings of an image and of its whole text, in -100..100.

    NaN for an image whose text is not known.
    """

    name, title, form = "clip_t", "CLIP-T", "{:.2f}"
    bounds = (-100.0, 100.0)

    def __init__(self, config: ConfigDict, judges: Judges):
        super().__init__(config, judges)
        if not self.clip.clip.has_text:
            raise NoJudge(f"{self.judge} {NO_TEXT}")

    def __call__(self, generated: Generated, known: Known) -> Values | None:
        if generated.texts is None:
            return None
        features = self.clip.features(generated)
        values = self.clip.clip.score_features(features, generated.texts)
        return Values(np.where([bool(text) for text in generated.texts], values, np.nan))
