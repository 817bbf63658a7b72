"""How many people or seeds would settle the sign of a difference, by the spread observed so far.

A sample size is a guess: it takes the observed difference and spread for the true ones. It counts
units so that with probability ``power`` the 95 % interval of a new sample leaves out 0 (Chow, Shao,
Wang and Lokhnygina 2017, Sample Size Calculations in Clinical Research, section 3.2, with t
quantiles in place of the normal's).
"""

import numpy as np
from scipy.special import stdtrit

from persongen_jax.metrics.intervals.limits import (
    CONFIDENCE,
    freedom_of,
    room_of_runs,
    spread_over,
    student,
    variance_of_both,
)
from persongen_jax.metrics.intervals.pairs import Pairs

POWER = 0.8
MOST = 1_000_000


def people_to_settle(pairs: Pairs, power: float = POWER) -> int | None:
    """The number of people, each with as many images and seeds as now; None if nothing says so.

    None: fewer than two people, a mean difference of 0, no spread, or more than a million.
    """
    sums, counts = pairs.cells()
    if counts.shape[1] < 2:
        return None
    spread = spread_over(sums.sum(0), counts.sum(0))
    if spread.equal or spread.mean == 0:
        return None
    of_one = float(spread.error) * np.sqrt(counts.shape[1])
    return _smallest(lambda n: of_one / np.sqrt(n), abs(float(spread.mean)), power)


def seeds_to_settle(pairs: Pairs, power: float = POWER) -> int | None:
    """The number of seeds with the same number of people; None if no number of seeds would do.

    More seeds average out what differs between seeds, never what differs between people: with too
    few people no number of seeds settles the sign.
    """
    sums, counts = pairs.cells()
    seeds, people = counts.shape
    if people < 2 or seeds < 2 or not (counts.sum(0) > 0).all():
        return None
    spread = spread_over(sums.sum(0), counts.sum(0))
    both = float(variance_of_both(sums, counts))
    of_people = max(float(spread.error) ** 2 - both, 0.0)
    extra = (float(room_of_runs(sums, counts) / student(freedom_of(counts.sum(1))))) ** 2
    of_seed = (extra + both) * seeds
    size = abs(float(spread.mean))
    if not size or not (of_people or of_seed):
        return None
    freedom = float(spread.freedom)
    return _smallest(lambda n: np.sqrt(of_people + of_seed / n), size, power, freedom)


def _smallest(error, size, power, freedom=None) -> int | None:
    """The smallest n from 2 on with (t + t of the power) · error(n) ≤ size; t over n - 1."""

    def enough(n):
        df = n - 1 if freedom is None else freedom
        return (stdtrit(df, (1 + CONFIDENCE) / 2) + stdtrit(df, power)) * error(n) <= size

    if not enough(MOST):
        return None
    low, high = 1, MOST  # low is not enough, high is
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high
