"""The 95 % interval of one number of a whole set, if other people had been taken.

People, with all their images, are left out in turn, and the spread of the results gives the
standard error (Tukey's jackknife; Efron and Stein 1981, Annals of Statistics 9, 586-596). A
bootstrap would take images twice, and the distances between sets, which compare images with each
other, are biased by equal ones.
"""

from collections.abc import Callable, Sequence

import numpy as np
from scipy.special import stdtrit

from persongen_jax.metrics.intervals.limits import CONFIDENCE

MOST_GROUPS = 20  # of people left out together, where there are more people


def group_people(*owners: Sequence[str]) -> list[np.ndarray]:
    """Sequences of names to the number of each one's group, below MOST_GROUPS, [n] each."""
    places = {name: i for i, name in enumerate(dict.fromkeys(n for names in owners for n in names))}
    groups = min(len(places), MOST_GROUPS)
    return [np.array([places[name] % groups for name in names], int) for names in owners]


def jackknife_interval(
    value: float, without: Callable[[int], float | None], groups: int
) -> tuple[float, float] | None:
    """(low, high) around ``value``, by Student's t; None if too few groups can be left out.

    Args:
        without: the value without a group; None if it is not defined then.
        groups: their number.
    """
    if groups < 2:
        return None
    values = [without(group) for group in range(groups)]
    if any(each is None for each in values):
        return None
    left = np.array(values, np.float64)
    error = np.sqrt((groups - 1) / groups * np.square(left - left.mean()).sum())
    reach = float(stdtrit(groups - 1, (1 + CONFIDENCE) / 2) * error)
    return value - reach, value + reach
