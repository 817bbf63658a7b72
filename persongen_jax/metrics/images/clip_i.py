"""CLIP-I: does the image look like the person's pictures to CLIP (DreamBooth, arXiv 2208.12242)?

Its section 4.1 defines the figure: the mean cosine of CLIP's image embeddings of generated and real
images, every pair. It does not name a CLIP; ViT-B/32 and ViT-L/14 are in use, so name yours.
"""

from ml_collections import ConfigDict

from persongen_jax.metrics.feature_judges import FeatureJudge
from persongen_jax.metrics.judged import ComparedWithPictures
from persongen_jax.metrics.judges import Judges


class ClipI(ComparedWithPictures):
    """Mean cosine of CLIP's embeddings of an image and of every real picture of its owner."""

    name, title, judge_key = "clip_i", "CLIP-I", "clip"

    def open_judge(self, config: ConfigDict, judges: Judges) -> FeatureJudge:
        return judges.clip
