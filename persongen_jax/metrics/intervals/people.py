"""The 95 % interval of a mean over people, or the reason why there is none."""

from dataclasses import dataclass

import numpy as np

from persongen_jax.metrics.intervals.limits import (
    SHARE,
    Bounds,
    limits_over_people,
    student,
)

ONE_PERSON = "one person says nothing about others"
NO_SPREAD = "every person has the same mean, and values have no bounds"
NOTHING = "nothing was measured"


@dataclass(frozen=True)
class Interval:
    """A mean and its 95 % interval.

    Attributes:
        mean: None if nothing was measured.
        low, high: None if there is no interval.
        n: the number of values.
        units: the number of people, or of runs or answers where these are the sample.
        reason: why there is no interval, a sentence's worth; "" if there is one.
    """

    mean: float | None
    low: float | None
    high: float | None
    n: int
    units: int
    reason: str = ""

    def as_measure(self) -> dict:
        """{"mean", "low", "high", "n"}, and "reason" if there is no interval."""
        found = {"mean": self.mean, "low": self.low, "high": self.high, "n": self.n}
        return {**found, "reason": self.reason} if self.reason else found


def over_people(values: np.ndarray, people: np.ndarray, bounds: Bounds = None) -> Interval:
    """The interval of the mean of ``values``, if other people had been taken.

    Images of one person resemble each other, so people are the sample, not images.

    Args:
        values: [n], such as cosines, or 0 and 1 for wrong and right.
        people: [n], whose image each value belongs to; any numbers of images.
        bounds: (least, most) that a value can be, (0, 1) for shares; None: unknown.

    Raises:
        ValueError: shapes that do not fit, values not finite, or out of their bounds.
    """
    values = checked(values, bounds)
    people = np.asarray(people)
    if people.shape != values.shape:
        raise ValueError(f"values {values.shape} and people {people.shape}: both are [n]")
    _, which = np.unique(people, return_inverse=True)
    return over_sums(np.bincount(which, values), np.bincount(which), bounds)


def over_sums(
    sums: np.ndarray, counts: np.ndarray, bounds: Bounds = None, one: str = ONE_PERSON
) -> Interval:
    """over_people from each unit's sum [n] and number [n] of values.

    Args:
        one: the reason if there is one unit.
    """
    sums, counts = np.asarray(sums, np.float64), np.asarray(counts, np.float64)
    sums, counts = sums[counts > 0], counts[counts > 0]
    n, units = int(counts.sum()), len(counts)
    if not n:
        return Interval(None, None, None, 0, 0, NOTHING)
    mean = float(sums.sum() / n)
    if units < 2:
        return Interval(mean, None, None, n, units, one)
    return with_limits(mean, limits_over_people(sums, counts, bounds), n, units)


def with_limits(mean: float, limits: tuple, n: int, units: int) -> Interval:
    """An Interval of ``limits``, NaN for none."""
    low, high = map(float, limits)
    if np.isnan(low) or np.isnan(high):
        return Interval(mean, None, None, n, units, NO_SPREAD)
    return Interval(mean, min(low, mean), max(high, mean), n, units)


def over_answers(correct: np.ndarray) -> Interval:
    """The interval of the share of right ones among independent answers, each 0 or 1.

    Wilson's (1927, J. Am. Statist. Assoc. 22, 209-212).

    Args:
        correct: [n], finite.

    Raises:
        ValueError: values other than 0 and 1.
    """
    correct = checked(correct, SHARE)
    if not np.isin(correct, (0, 1)).all():
        raise ValueError("answers that are neither 0 nor 1: use over_people")
    n = len(correct)
    if not n:
        return Interval(None, None, None, 0, 0, NOTHING)
    p, z = float(correct.mean()), float(student(np.array(np.inf)))
    middle, room = p + z**2 / (2 * n), z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    low, high = ((middle + sign * room) / (1 + z**2 / n) for sign in (-1, 1))
    return Interval(p, max(0.0, min(float(low), p)), min(1.0, max(float(high), p)), n, n)


def checked(values: np.ndarray, bounds: Bounds) -> np.ndarray:
    """Values [n] as float64; ValueError if they are not finite or not within ``bounds``."""
    values = np.asarray(values, np.float64)
    if values.ndim != 1:
        raise ValueError(f"values {values.shape}: [n] is needed")
    bad = ~np.isfinite(values)
    if bad.any():
        raise ValueError(
            f"{bad.sum()} of {len(values)} values are not finite: leave them out and say so, or "
            "count them as 0"
        )
    if bounds is not None and len(values):
        room = 1e-6 * (bounds[1] - bounds[0])  # of rounding
        worst = values[np.argmax(np.maximum(bounds[0] - values, values - bounds[1]))]
        if not bounds[0] - room <= worst <= bounds[1] + room:
            raise ValueError(f"a value of {worst} lies outside the bounds {bounds}")
    return values
