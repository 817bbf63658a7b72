"""Rank-1: is the nearest face among N people that of the right one (thesis, chapter 6)?

Embeddings are ArcFace's (Deng et al., arXiv 1801.07698, section 3.3). Guessing scores 1 / N.
"""

import abc

import numpy as np

from persongen_jax.metrics.base import Generated, Known, NoFigure, Values
from persongen_jax.metrics.judged import JudgedByFaceNet

FEW = 10  # people of the smaller gallery


class Rank1(JudgedByFaceNet):
    """1 where the nearest of the gallery, by cosine, is the image's owner, else 0.

    An image without a face counts as 0. NaN for owners who are not in the gallery, or without a
    face in their references. The fact "among" is N.

    Raises, when called:
        NoFigure: nobody to search among.
    """

    form, plotted, bounds = "{:.1%}", False, (0.0, 1.0)
    remedy = "give real pictures in which faces are found"

    @abc.abstractmethod
    def gallery(self, known: Known) -> dict[str, np.ndarray]:
        """Name to embedding [d]; {} if there is nobody to search among."""

    def prepare(self, known: Known) -> None:
        self.gallery(known)

    def __call__(self, generated: Generated, known: Known) -> Values:
        gallery = self.gallery(known)
        if not gallery:
            raise NoFigure(f"there is nobody to search among; {self.remedy}")
        embeddings, found = self.faces.embed(generated)
        owners, names = np.asarray(generated.owners, str), np.array(list(gallery), str)
        rows = np.isin(owners, list(self.faces.references(known))) & np.isin(owners, names)
        values = np.where(rows, 0.0, np.nan)
        seen = rows & found
        if seen.any():
            nearest = (unit(embeddings[seen]) @ unit(np.stack(list(gallery.values()))).T).argmax(1)
            values[seen] = names[nearest] == owners[seen]
        return Values(values, facts={"among": len(names)})


class Rank1Of10(Rank1):
    """Among the first ten people of the set itself; images of the others are left out."""

    name, title = "rank1_10", "rank-1/10"

    def gallery(self, known: Known) -> dict[str, np.ndarray]:
        return first_people(self.faces.gallery(known))


class Rank1Of100(Rank1):
    """Among ``known.others`` (config.validation_gallery, usually 100 people) and the set's."""

    name, title = "rank1_100", "rank-1/100"
    remedy = "give a gallery (config.validation_gallery, or --gallery)"

    def gallery(self, known: Known) -> dict[str, np.ndarray]:
        return self.faces.large_gallery(known)


def first_people(gallery: dict) -> dict:
    """The smaller gallery: the first FEW of it."""
    return dict(list(gallery.items())[:FEW])


def unit(rows: np.ndarray) -> np.ndarray:
    """Rows [n, d] of length 1."""
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)
