"""Face diversity (PhotoMaker, arXiv 2312.04461, section 4.1): how different are a person's faces?

LPIPS (Zhang et al., arXiv 1801.03924) of every pair of faces. The paper says neither the crop, nor
the network, nor whether pairs cross people. Here pairs are of one person, and the crop is the
aligned square of ArcFace's template (arXiv 1801.07698) at 256 pixels.
"""

import numpy as np
from ml_collections import ConfigDict

from persongen_jax.metrics.base import Generated, Known, Values
from persongen_jax.metrics.judged import JudgedByLpips
from persongen_jax.metrics.judges import Judges

SIZE = 256


class FaceDiversity(JudgedByLpips):
    """Mean LPIPS of a face to the other faces of its owner, from 0 on; NaN without a face."""

    name, title = "face_diversity", "face diversity"

    def __init__(self, config: ConfigDict, judges: Judges):
        super().__init__(config, judges)
        self.faces = judges.faces
        self.judge = f"{config.lpips}; faces by {self.faces.embedder.detector_name}"

    def __call__(self, generated: Generated, known: Known) -> Values:
        owners = np.asarray(generated.owners, str)
        found = np.array([each is not None for each in self.faces.detections(generated)], bool)
        values = np.full(len(owners), np.nan)
        for name in dict.fromkeys(owners[found].tolist()):
            rows = np.flatnonzero(found & (owners == name))
            values[rows] = self.to_others([*self.faces.crops(generated, rows, SIZE)])
        return Values(values, facts={"net": self.lpips.net, "pixels": SIZE})
