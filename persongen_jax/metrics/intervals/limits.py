"""The formulas of the intervals, on arrays with any leading axes, such as trials of a benchmark.

People are the units. They are given by the sum and the number of their images' values, which is
all that a mean over images depends on. The steps, each measured by
benchmarks/evaluation/coverage.py:

1. the standard error is cluster-robust, corrected for few clusters (CR2 of Bell and McCaffrey 2002,
   Survey Methodology 28, 169-181, here for a mean);
2. its degrees of freedom are theirs too: n - 1 for equal numbers of images, fewer otherwise. The
   working model is that people differ and their images do not, the case with the fewest;
3. values without bounds: Student's t is corrected for the skewness of the data by Hall's cubic
   transformation (Hall 1992, J. R. Statist. Soc. B 54, 221-228). Shares: the t interval of the
   logit, by the delta method (Korn and Graubard 1999, Analysis of Health Surveys, section 3.3);
4. all people equal, values with bounds: if a share q of all people differed, none of n would with
   the probability (1 - q)^n, so q is at most 1 - 0.025^(1/n). For shares of 0 and 1 this is the
   interval of Clopper and Pearson (1934, Biometrika 26, 404-413), with people as the sample.
"""

from typing import NamedTuple

import numpy as np
from scipy.special import expit, logit, stdtrit

CONFIDENCE = 0.95
SHARE = (0.0, 1.0)  # the bounds of shares
SAME = 1e-10  # people whose means differ by less, relative to their size, count as equal

Bounds = tuple[float, float] | None


class Spread(NamedTuple):
    """A mean over images and how it varies with the people; arrays [...].

    Attributes:
        mean: of all images.
        error: its standard error, over people.
        freedom: degrees of freedom of ``error``.
        skew: third moment of the mean over the 3/2th power of its second, estimated.
        equal: whether every person has the same mean.
    """

    mean: np.ndarray
    error: np.ndarray
    freedom: np.ndarray
    skew: np.ndarray
    equal: np.ndarray


def spread_over(sums: np.ndarray, counts: np.ndarray) -> Spread:
    """The spread over people with ``sums`` [..., n] of ``counts`` [..., n] values; n > 1.

    Every count is above 0.
    """
    total = counts.sum(-1)
    mean = sums.sum(-1) / total
    weights, own = counts / total[..., None], sums / counts
    parts = weights * (own - mean[..., None])
    error = np.sqrt((parts**2 / (1 - weights)).sum(-1))
    size = np.abs(own).max(-1)
    equal = own.max(-1) - own.min(-1) <= SAME * np.where(size > 0, size, 1)
    second = np.where(equal, 1, (parts**2).sum(-1))
    skew = np.where(equal, 0, (parts**3).sum(-1) / second**1.5)
    return Spread(mean, error, freedom_of(counts), skew, equal)


def freedom_of(counts: np.ndarray) -> np.ndarray:
    """Bell and McCaffrey's degrees of freedom [...] from numbers of images [..., n].

    The variance estimate is a quadratic form x'Ax of independent people's means with variance 1;
    its degrees of freedom by Satterthwaite are tr(A)² / tr(A²), here without an n × n matrix.
    """
    weights = counts / counts.sum(-1, keepdims=True)
    own, a = weights**2, 1 / (1 - weights)
    whole = own.sum(-1)

    def over(x, y):
        return (a * x * y).sum(-1)

    off = -2 * weights * own + whole[..., None] * own
    trace = (a * (off + own)).sum(-1)
    ww, dd, wd = over(weights, weights), over(own, own), over(weights, own)
    square = 2 * ww * dd + whole**2 * ww**2 + 2 * wd**2 - 4 * whole * ww * wd
    square = square + (a**2 * (2 * off * own + own**2)).sum(-1)
    return trace**2 / square


def student(freedom: np.ndarray, confidence: float = CONFIDENCE) -> np.ndarray:
    """Student's t that holds ``confidence`` between itself and its negative."""
    return stdtrit(freedom, (1 + confidence) / 2)


def limits_over_people(
    sums: np.ndarray, counts: np.ndarray, bounds: Bounds = None
) -> tuple[np.ndarray, np.ndarray]:
    """(low, high) [...] of the mean over images; NaN if people are equal and have no bounds.

    Args:
        sums: [..., n], of each person's values; n > 1.
        counts: [..., n], the number of each person's values, above 0.
        bounds: of a value; SHARE takes the logit, others only cut.
    """
    spread = spread_over(sums, counts)
    low, high = logit_limits(spread) if bounds == SHARE else hall_limits(spread)
    least, most = np.nan, np.nan
    if bounds is not None:
        low, high = np.clip(low, *bounds), np.clip(high, *bounds)
        least, most = equal_limits(spread.mean, counts.shape[-1], bounds)
    return np.where(spread.equal, least, low), np.where(spread.equal, most, high)


def hall_limits(spread: Spread) -> tuple[np.ndarray, np.ndarray]:
    """Hall's limits: those of Student's t, put through the inverse of his transformation."""
    t = student(spread.freedom)
    low = spread.mean - _untransformed(t, spread.skew) * spread.error
    return low, spread.mean - _untransformed(-t, spread.skew) * spread.error


def _untransformed(t, skew):
    """x of x + skew x² / 3 + skew² x³ / 27 + skew / 6 = t, which rises everywhere."""
    some = np.abs(skew) > 1e-9
    safe = np.where(some, skew, 1)
    return np.where(some, 3 / safe * (np.cbrt(1 + safe * (t - safe / 6)) - 1), t)


def logit_limits(spread: Spread) -> tuple[np.ndarray, np.ndarray]:
    """Limits of a share; where all people are equal they mean nothing."""
    inside = np.clip(spread.mean, 1e-12, 1 - 1e-12)
    room = student(spread.freedom) * spread.error / (inside * (1 - inside))
    return expit(logit(inside) - room), expit(logit(inside) + room)


def equal_limits(mean: np.ndarray, n: int, bounds: tuple[float, float]) -> tuple:
    """(low, high) if n people all have the mean ``mean`` and values lie within ``bounds``."""
    low, high = bounds
    others = 1 - ((1 - CONFIDENCE) / 2) ** (1 / n)  # the share of people who may differ
    return mean - others * (mean - low), mean + others * (high - mean)


def limits_over_runs(
    sums: np.ndarray, counts: np.ndarray, bounds: Bounds = None
) -> tuple[np.ndarray, np.ndarray]:
    """(low, high) [...] of the mean over people and runs that all generate the same people.

    The variance of the mean has a part of people, one of runs, and one of both together, which the
    other two estimates hold as well (Owen 2007, arXiv 0711.1955). What runs add, if anything, comes
    to the square of the distance from the mean to the limits over people, with a t of its own: the
    MOVER of Zou and Donner (2008, Statistics in Medicine 27, 1693-1702).

    Args:
        sums: [..., runs, people]; counts: the same shape, 0 where a run lacks a person.
    """
    low, high = limits_over_people(sums.sum(-2), counts.sum(-2), bounds)
    if sums.shape[-2] < 2:
        return low, high
    mean = sums.sum((-2, -1)) / counts.sum((-2, -1))
    room = room_of_runs(sums, counts) ** 2
    low = mean - np.sqrt((mean - low) ** 2 + room)
    high = mean + np.sqrt((high - mean) ** 2 + room)
    return (low, high) if bounds is None else (np.clip(low, *bounds), np.clip(high, *bounds))


def room_of_runs(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Half the width [...] that runs add to the interval over people; see limits_over_runs."""
    runs = spread_over(sums.sum(-1), counts.sum(-1))
    extra = np.maximum(runs.error**2 - variance_of_both(sums, counts), 0)
    return student(runs.freedom) * np.sqrt(extra)


def variance_of_both(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The mean's variance [...] by what is left of [..., runs, people] beside their effects."""
    runs, people = sums.shape[-2:]
    total = counts.sum((-2, -1), keepdims=True)
    mean = sums.sum((-2, -1), keepdims=True) / total
    of_run = sums.sum(-1, keepdims=True) / counts.sum(-1, keepdims=True)
    of_person = sums.sum(-2, keepdims=True) / counts.sum(-2, keepdims=True)
    left = (sums - counts * (of_run + of_person - mean)) / total
    few = runs * people / ((runs - 1) * (people - 1))
    return few * (left**2).sum((-2, -1))
