"""DINO-I: does the image look like the person's pictures to DINO (DreamBooth, arXiv 2208.12242)?

Its section 4.1 defines the figure: the mean cosine of the class tokens' embeddings by ViT-S/16 of
DINO (Caron et al., arXiv 2104.14294) of generated and real images, every pair.
"""

from ml_collections import ConfigDict

from persongen_jax.metrics.feature_judges import FeatureJudge
from persongen_jax.metrics.judged import ComparedWithPictures
from persongen_jax.metrics.judges import Judges


class DinoI(ComparedWithPictures):
    """Mean cosine of DINO's embeddings of an image and of every real picture of its owner."""

    name, title, judge_key = "dino_i", "DINO-I", "dino"

    def open_judge(self, config: ConfigDict, judges: Judges) -> FeatureJudge:
        return judges.dino
