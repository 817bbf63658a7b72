"""Face-Sim: does the face look like the reference (ArcFace, Deng et al., arXiv 1801.07698)?

A mean over found faces alone rewards a model for hiding difficult ones: read it together with
``detection_rate``, or use ``face_sim_misses_as_0``.
"""

import numpy as np

from persongen_jax.metrics.base import Generated, Known, Values
from persongen_jax.metrics.face_similarity import cosine
from persongen_jax.metrics.judged import JudgedByFaceNet


class FaceSim(JudgedByFaceNet):
    """Cosine of the embeddings of the generated and the reference's face, in -1..1.

    NaN where no face is found, and for people without a face in their references.
    """

    name, title, form = "face_sim", "Face-Sim", "{:.3f}"
    bounds = (-1.0, 1.0)

    def prepare(self, known: Known) -> None:
        self.faces.references(known)

    def __call__(self, generated: Generated, known: Known) -> Values:
        embeddings, found = self.faces.embed(generated)
        references = self.faces.references(known)
        owners = np.asarray(generated.owners, str)
        values = np.full(len(owners), np.nan)
        seen = found & np.isin(owners, list(references))
        if seen.any():
            own = np.stack([references[name] for name in owners[seen]])
            values[seen] = cosine(embeddings[seen], own)
        return Values(values)


class FaceSimMissesAs0(FaceSim):
    """Face-Sim, where an image without a face counts as 0."""

    name, title = "face_sim_misses_as_0", "Face-Sim (misses 0)"
    plotted = False

    def __call__(self, generated: Generated, known: Known) -> Values:
        _, found = self.faces.embed(generated)
        values = super().__call__(generated, known).values
        known_owner = np.isin(np.asarray(generated.owners, str), list(self.faces.references(known)))
        return Values(np.where(known_owner & ~found, 0.0, values))
