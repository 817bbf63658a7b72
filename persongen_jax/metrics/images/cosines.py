"""Cosines of generated faces with the people of the smaller gallery: the right one, and the others.

The gap between them shows how clearly rank-1 is decided. Embeddings are ArcFace's (Deng et al.,
arXiv 1801.07698, section 3.3).
"""

import numpy as np

from persongen_jax.metrics.base import Generated, Known, Values
from persongen_jax.metrics.images.rank1 import first_people, unit
from persongen_jax.metrics.judged import JudgedByFaceNet


class CosineTrue(JudgedByFaceNet):
    """Cosine with the gallery's embedding of the image's owner, in -1..1.

    NaN without a face, and for owners who are not among the gallery's first ten people.
    """

    name, title = "cosine_true", "cosine (own)"
    plotted, bounds = False, (-1.0, 1.0)

    def prepare(self, known: Known) -> None:
        self.faces.gallery(known)

    def __call__(self, generated: Generated, known: Known) -> Values:
        gallery = first_people(self.faces.gallery(known))
        embeddings, found = self.faces.embed(generated)
        owners, names = np.asarray(generated.owners, str), np.array(list(gallery), str)
        values = np.full(len(owners), np.nan)
        rows = found & np.isin(owners, names)
        if rows.any():
            to_all = unit(embeddings[rows]) @ unit(np.stack(list(gallery.values()))).T
            values[rows] = self.choose(to_all, names[None] == owners[rows, None])
        return Values(values)

    def choose(self, to_all: np.ndarray, true: np.ndarray) -> np.ndarray:
        """Select values [n] from cosines [n, people] by which person is the right one, bool."""
        return to_all[true]


class CosineOthers(CosineTrue):
    """The mean over all but the image's owner; NaN if there is nobody else."""

    name, title, less_is_better = "cosine_others", "cosine (others)", True

    def choose(self, to_all: np.ndarray, true: np.ndarray) -> np.ndarray:
        others = (~true).sum(1)
        with np.errstate(invalid="ignore"):
            return np.where(true, 0, to_all).sum(1) / np.where(others > 0, others, np.nan)
