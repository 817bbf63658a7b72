"""A user-defined system's metric: are the digits recognised as requested?"""

import numpy as np
from sklearn.neighbors import KNeighborsClassifier

from persongen_jax.metrics.base import Metric, Values


class ReadAsAsked(Metric):
    """Share of images whose nearest real digits, by pixels, are the requested ones."""

    name, title, form, chance = "read_as_asked", "read as asked", "{:.0%}", 0.1
    judge = "scikit-learn's digits, 3 nearest neighbours"

    def __call__(self, generated, known):
        pictures = [(p, o.name) for o in known.people.owners for p in o.pictures()]
        judge = KNeighborsClassifier(3).fit(*_rows(pictures))
        found = judge.predict(generated.images[..., 0].reshape(len(generated.images), -1))
        return Values((found == np.asarray(generated.owners)).astype(np.float64))


def _rows(pictures):
    return [picture[..., 0].reshape(-1) for picture, _ in pictures], [name for _, name in pictures]
