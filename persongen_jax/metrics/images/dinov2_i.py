"""DINOv2-I: DINO-I by DINOv2 (Oquab et al., arXiv 2304.07193), as later evaluations compute it.

Another metric than DINO-I: figures of the two are not comparable.
"""

from ml_collections import ConfigDict

from persongen_jax.metrics.feature_judges import FeatureJudge
from persongen_jax.metrics.judged import ComparedWithPictures
from persongen_jax.metrics.judges import Judges


class Dinov2I(ComparedWithPictures):
    """Mean cosine of DINOv2's embeddings of an image and of every real picture of its owner."""

    name, title, judge_key = "dinov2_i", "DINOv2-I", "dinov2"

    def open_judge(self, config: ConfigDict, judges: Judges) -> FeatureJudge:
        return judges.dinov2
