"""The 95 % interval of one number of a whole set, if other people had been taken.

People, with all their images, are left out in turn, and the spread of the results gives the
standard error (Tukey's jackknife; Efron and Stein 1981, Annals of Statistics 9, 586-596). Many
people are left out in groups, whose sizes may differ by one: figures such as FID are biased by the
number of images, and pseudo-values that allow for the sizes keep that bias out of the spread
(Busing, Meijer and van der Leeden 1999, Statistics and Computing 9, 3-8). A bootstrap would take
images twice, and the distances between sets, which compare images with each other, are biased by
equal ones.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import stdtrit

from persongen_jax.metrics.intervals.limits import CONFIDENCE, SAME

MOST_GROUPS = 20  # of people left out together, where there are more people


class Groups(NamedTuple):
    """Groups of people.

    Attributes:
        rows: for each sequence of names, the number of each one's group, [n] ints from 0.
        people: [g], how many people each group has.
    """

    rows: tuple[np.ndarray, ...]
    people: np.ndarray


def group_people(*owners: Sequence[str]) -> Groups:
    """At most MOST_GROUPS groups of the people that the sequences name."""
    places = {name: i for i, name in enumerate(dict.fromkeys(n for names in owners for n in names))}
    groups = max(1, min(len(places), MOST_GROUPS))
    rows = tuple(np.array([places[name] % groups for name in names], int) for names in owners)
    return Groups(rows, np.bincount(np.arange(len(places)) % groups, minlength=groups))


def jackknife_interval(
    value: float, without: Callable[[int], float | None], people: np.ndarray
) -> tuple[float, float] | None:
    """(low, high) around ``value``, by Student's t.

    None if too few groups can be left out, or if nothing changes when they are: equal results do
    not mean that other people would have given the same.

    Args:
        without: the value without a group; None if it is not defined then.
        people: [g], how many people each group has.
    """
    groups = len(people)
    if groups < 2:
        return None
    values = [without(group) for group in range(groups)]
    if any(each is None for each in values):
        return None
    times = people.sum() / people  # how many such groups there would be
    pseudo = times * value - (times - 1) * np.array(values, np.float64)
    error = np.sqrt(np.mean(np.square(pseudo - pseudo.mean()) / (times - 1)))
    if error <= SAME * abs(value):
        return None
    reach = float(stdtrit(groups - 1, (1 + CONFIDENCE) / 2) * error)
    return value - reach, value + reach
