"""Batches by row: dataclasses of arrays that share their first axis, and random numbers per row.

Row i's numbers are a function of its key and do not depend on other rows. A generator object per
row would give that too, but costs more than drawing the picture's shapes. The hash is splitmix64
(Steele, Lea and Flood, 2014).
"""

from dataclasses import dataclass, fields, replace
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike

GOLDEN = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class Rows:
    """Base class of dataclasses whose fields are all arrays [n, ...]."""

    def __len__(self) -> int:
        return len(getattr(self, fields(self)[0].name))

    def take(self, rows: Any) -> Self:
        """The same with the rows of an index array, mask or slice."""
        return replace(self, **{f.name: getattr(self, f.name)[rows] for f in fields(self)})


def _mix(state):
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


# The first part of every key, so that person 3 of seed 0 and picture 3 of seed 0 share nothing.
PERSON, GROUP, PICTURE, EXAMPLE, SCENERY, FAULTS = range(6)


def fold(*parts: Any) -> np.ndarray:
    """One uint64 key [n] from whole numbers and arrays [n] of them; the order matters."""
    key = np.zeros(1, np.uint64)
    for part in parts:
        key = _mix(key * GOLDEN + _mix(np.atleast_1d(part).astype(np.uint64) + GOLDEN))
    return key


class Draws:
    """Numbers for ``n`` rows from keys [n]; every call takes the next column of all rows."""

    def __init__(self, keys: ArrayLike):
        self._keys = np.atleast_1d(np.asarray(keys, np.uint64))
        self._column = 0

    def __len__(self):
        return len(self._keys)

    def uniform(
        self,
        low: float | np.ndarray = 0.0,
        high: float | np.ndarray = 1.0,
        columns: int | None = None,
    ) -> np.ndarray:
        """[n], or [n, columns], float64 in [low, high); the bounds may be [n] themselves."""
        if columns is not None:
            return np.stack([self.uniform(low, high) for _ in range(columns)], axis=1)
        self._column += 1
        step = np.multiply(GOLDEN, np.array([self._column], np.uint64))
        bits = _mix(self._keys + step) >> np.uint64(11)
        return low + (high - low) * (bits * 2.0**-53)

    def flag(self, probability: float | np.ndarray) -> np.ndarray:
        """[n] bool."""
        return self.uniform() < probability

    def choice(self, weights: ArrayLike) -> np.ndarray:
        """[n] int64 in [0, k) by ``weights`` [k] or [n, k]."""
        edges = np.cumsum(np.atleast_2d(np.asarray(weights, np.float64)), axis=1)
        position = self.uniform()[:, None] * edges[:, -1:]
        return np.minimum((position >= edges).sum(1), edges.shape[1] - 1)
