"""CLIP-T: does the image show what the prompt says (Radford et al., arXiv 2103.00020, sec. 3.1)?"""

from persongen_jax.metrics.base import Metric, Values


class ClipT(Metric):
    """100 times the cosine of CLIP's embeddings of an image and of its whole text, in -100..100."""

    name, title, form = "clip_t", "CLIP-T", "{:.2f}"
    judge_key = "clip"

    def __init__(self, config, judges):
        self.clip, self.judge = judges.clip, config.clip

    def networks(self):
        return self.clip.clip.networks

    def __call__(self, generated, known):
        if generated.texts is None:
            return None
        features = self.clip.features(generated)
        return Values(self.clip.clip.score_features(features, generated.texts))
