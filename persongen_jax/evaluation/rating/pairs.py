"""Which pairs of images are rated, and on which side each is shown."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from persongen_jax.evaluation.folders.entries import Entry, Folder


@dataclass(frozen=True)
class RatedPair:
    """Two folders' images of the same person, prompt and seed.

    Attributes:
        name: of the pair on the page; says nothing about the folders.
        entry: the first folder's.
        first, second: the images' files.
        first_is_left: where the page shows them.
    """

    name: str
    entry: Entry
    first: Path
    second: Path
    first_is_left: bool


def draw_pairs(first: Folder, second: Folder, count: int, seed: int) -> list[RatedPair]:
    """At most ``count`` pairs in a random order, as many of each person as possible.

    Half of each person's, rounded down or up, have the first folder's image on the left.

    Args:
        first, second: opened together (of_folders.py), so that they have images in common.
        seed: of order and sides; the same seed draws the same pairs.
    """
    rng = np.random.default_rng(seed)
    theirs = {entry.key: entry for entry in second.entries}
    by_person: dict[str, list[Entry]] = {}
    for entry in first.entries:
        if entry.key in theirs:
            by_person.setdefault(entry.person, []).append(entry)
    chosen = _in_turns([_shuffled(rng, own) for own in by_person.values()], count)
    lefts = {person: int(rng.integers(2)) for person in by_person}
    pairs = []
    for entry in chosen:
        lefts[entry.person] += 1
        files = first.path / entry.file, second.path / theirs[entry.key].file
        pairs.append(RatedPair(_name(seed, entry), entry, *files, lefts[entry.person] % 2 == 0))
    return _shuffled(rng, pairs)


def _in_turns(lists: list[list], count: int) -> list:
    """The first of each list, then the second of each, and so on, until there are ``count``."""
    longest = max(map(len, lists))
    turns = [own[i] for i in range(longest) for own in lists if i < len(own)]
    return turns[:count]


def _shuffled(rng: np.random.Generator, items: list) -> list:
    return [items[i] for i in rng.permutation(len(items))]


def _name(seed: int, entry: Entry) -> str:
    return hashlib.sha256(repr((seed, *entry.key)).encode()).hexdigest()[:12]
