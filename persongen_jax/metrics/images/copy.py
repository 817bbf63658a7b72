"""Copying: is the reference's face pasted, rather than the person painted anew?

Face-Sim rewards a copy. Two photographs of one person differ by expression, light and age, and
their embeddings (ArcFace, Deng et al., arXiv 1801.07698) with them; a generated face that is much
closer to the reference than the person's own other photographs are has copied that photograph.
"""

import numpy as np

from persongen_jax.metrics.base import Generated, Known, Values
from persongen_jax.metrics.face_similarity import cosine
from persongen_jax.metrics.images.rank1 import unit
from persongen_jax.metrics.judged import JudgedByFaceNet


class Copy(JudgedByFaceNet):
    """Face-Sim less the mean cosine of the person's other real pictures with the reference.

    0: as close to the reference as another photograph of the person; clearly above: a sign of
    copying. NaN without a face, and for people without a face in the references or in another real
    picture, whom a printed line names. At most eight further pictures count. The fact "n_real" is
    their number.
    """

    name, title, form = "copy", "copying", "{:+.3f}"
    plotted, bounds, target = False, (-2.0, 2.0), 0.0

    def prepare(self, known: Known) -> None:
        further = self.faces.further(known)
        missed = [name for name in self.faces.references(known) if name not in further]
        if missed:
            print(
                f"{known.name}: no further real picture with a face of {', '.join(missed)}: left "
                f"out of {self.title}"
            )

    def __call__(self, generated: Generated, known: Known) -> Values:
        references, further = self.faces.references(known), self.faces.further(known)
        usual = {
            name: float((unit(further[name]) @ unit(reference)).mean())
            for name, reference in references.items()
            if name in further
        }
        embeddings, found = self.faces.embed(generated)
        owners = np.asarray(generated.owners, str)
        values = np.full(len(owners), np.nan)
        seen = found & np.isin(owners, list(usual))
        if seen.any():
            own = np.stack([references[name] for name in owners[seen]])
            values[seen] = cosine(embeddings[seen], own) - [usual[name] for name in owners[seen]]
        return Values(values, facts={"n_real": sum(len(further[name]) for name in usual)})
