"""Detection rate: how often the detector finds a face in a generated image."""

import numpy as np
from ml_collections import ConfigDict

from persongen_jax.metrics.base import Generated, Known, Metric, Values
from persongen_jax.metrics.judges import Judges


class DetectionRate(Metric):
    """1 where a face is found, else 0; NaN for people without a face in their references."""

    name, title, form = "detection_rate", "faces found", "{:.1%}"
    plotted, bounds = False, (0.0, 1.0)
    judge_key = "face_detector"

    def __init__(self, config: ConfigDict, judges: Judges):
        self.faces = judges.faces
        self.judge = self.faces.embedder.detector_name

    def prepare(self, known: Known) -> None:
        self.faces.references(known)

    def __call__(self, generated: Generated, known: Known) -> Values:
        _, found = self.faces.embed(generated)
        owners = np.asarray(generated.owners, str)
        rows = np.isin(owners, list(self.faces.references(known)))
        return Values(np.where(rows, found, np.nan))
