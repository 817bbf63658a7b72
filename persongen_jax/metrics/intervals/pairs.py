"""Differences of two methods on the same identities, prompts and seeds, with their interval."""

from collections.abc import Hashable, Iterable
from dataclasses import dataclass

import numpy as np

from persongen_jax.metrics.intervals.limits import Bounds
from persongen_jax.metrics.intervals.people import Interval, over_sums
from persongen_jax.metrics.intervals.runs import over_people_and_runs

Key = tuple[Hashable, Hashable, Hashable]  # identity, prompt, seed


@dataclass(frozen=True)
class Pairs:
    """What two methods gave for the same (identity, prompt, seed), first minus second.

    Attributes:
        differences: [n].
        keys: [n], the (identity, prompt, seed) of each.
        only_first, only_second: keys that the other method lacks.
        missing: keys that both have and at least one could not measure (NaN).
    """

    differences: np.ndarray
    keys: tuple[Key, ...]
    only_first: tuple[Key, ...]
    only_second: tuple[Key, ...]
    missing: tuple[Key, ...]

    def cells(self) -> tuple[np.ndarray, np.ndarray]:
        """Sums and counts [seeds, people] of the differences."""
        people = _places(key[0] for key in self.keys)
        seeds = _places(key[2] for key in self.keys)
        sums, counts = np.zeros((2, len(seeds), len(people)))
        for value, (person, _, seed) in zip(self.differences, self.keys, strict=True):
            place = seeds[seed], people[person]
            sums[place] += value
            counts[place] += 1
        return sums, counts

    def left_out(self) -> str:
        """Such as "3 of 40 not compared: 2 only in the first, 1 not measured"; "" if none is."""
        parts = [
            f"{len(self.only_first)} only in the first" * bool(self.only_first),
            f"{len(self.only_second)} only in the second" * bool(self.only_second),
            f"{len(self.missing)} not measured" * bool(self.missing),
        ]
        lost = len(self.only_first) + len(self.only_second) + len(self.missing)
        said = ", ".join(filter(None, parts))
        return f"{lost} of {lost + len(self.keys)} not compared: {said}" if lost else ""


def pair(
    first: Iterable[float],
    first_keys: Iterable[Key],
    second: Iterable[float],
    second_keys: Iterable[Key],
) -> Pairs:
    """Match the values of two methods by their keys.

    Args:
        first, second: a value per image; NaN if it could not be measured.
        first_keys, second_keys: (identity, prompt, seed) of each, in any order.

    Raises:
        ValueError: a key twice in one method, or another number of keys than of values.
    """
    one, two = _by_key(first, first_keys, "first"), _by_key(second, second_keys, "second")
    both = [key for key in one if key in two]
    there = [key for key in both if np.isfinite(one[key]) and np.isfinite(two[key])]
    known = set(there)
    return Pairs(
        differences=np.array([one[key] - two[key] for key in there], np.float64),
        keys=tuple(there),
        only_first=tuple(key for key in one if key not in two),
        only_second=tuple(key for key in two if key not in one),
        missing=tuple(key for key in both if key not in known),
    )


def _places(names) -> dict[Hashable, int]:
    return {name: place for place, name in enumerate(dict.fromkeys(names))}


def _by_key(values, keys, name) -> dict[Key, float]:
    values, keys = [float(value) for value in values], [tuple(key) for key in keys]
    if len(values) != len(keys):
        raise ValueError(f"{len(values)} values and {len(keys)} keys of the {name} method: as many")
    found: dict = {}
    for key, value in zip(keys, values, strict=True):
        if key in found:
            raise ValueError(
                f"the {name} method has two images of (identity, prompt, seed) {key}: give each "
                "image its own seed"
            )
        found[key] = value
    return found


def difference(pairs: Pairs, bounds: Bounds = None, over_seeds: bool = False) -> Interval:
    """The interval of the mean difference, if other people had been taken.

    Args:
        bounds: of a single value of either method, (0, 1) for shares; a difference of them lies
            between (-1, 1).
        over_seeds: also if other seeds had been taken; every seed was used for every person.
    """
    wide = None if bounds is None else (bounds[0] - bounds[1], bounds[1] - bounds[0])
    sums, counts = pairs.cells()
    if over_seeds:
        return over_people_and_runs(sums, counts, wide)
    return over_sums(sums.sum(0), counts.sum(0), wide)
