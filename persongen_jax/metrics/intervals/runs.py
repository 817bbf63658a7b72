"""The 95 % interval of a mean over people and over runs that differ by their seed."""

import numpy as np

from persongen_jax.metrics.intervals.limits import Bounds, limits_over_runs
from persongen_jax.metrics.intervals.people import (
    NOTHING,
    ONE_PERSON,
    Interval,
    over_sums,
    with_limits,
)


def over_people_and_runs(sums: np.ndarray, counts: np.ndarray, bounds: Bounds = None) -> Interval:
    """The interval of the mean, if other people and other seeds had been taken.

    With one run it is the interval over people, which says nothing about other seeds. If every
    person has the same mean, the interval is that of one run (limits.py, 4).

    Args:
        sums: [runs, people], of the values; counts: [runs, people], how many, 0 for none.
        bounds: of a value, see over_people.

    Raises:
        ValueError: shapes that differ, or a sum that is not finite.
    """
    sums, counts = np.asarray(sums, np.float64), np.asarray(counts, np.float64)
    if sums.ndim != 2 or sums.shape != counts.shape:
        raise ValueError(f"sums {sums.shape} and counts {counts.shape}: both are [runs, people]")
    if not np.isfinite(sums).all():
        raise ValueError("sums that are not finite: leave such values out of the counts too")
    runs, people = counts.sum(1) > 0, counts.sum(0) > 0
    sums, counts = sums[runs][:, people], counts[runs][:, people]
    n = int(counts.sum())
    if not n:
        return Interval(None, None, None, 0, 0, NOTHING)
    mean, units = float(sums.sum() / n), counts.shape[1]
    if units < 2:
        return Interval(mean, None, None, n, units, ONE_PERSON)
    return with_limits(mean, limits_over_runs(sums, counts, bounds), n, units)


def over_runs(values: np.ndarray, bounds: Bounds = None) -> Interval:
    """The interval of the mean of one number per run [runs], if other seeds had been taken."""
    values = np.asarray(values, np.float64)
    one = "one run says nothing about others"
    return over_sums(values, np.ones(len(values)), bounds, one)
