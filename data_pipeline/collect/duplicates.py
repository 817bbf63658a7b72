"""One picture several times: the same bytes, or almost the same hash and the same face."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from data_pipeline.collect.choices import Choice, Drop
from data_pipeline.collect.looking.phash import as_number
from data_pipeline.collect.settings import Duplicates

STAGE = "duplicates"
ALL_PAIRS = 20_000  # hashes up to which all pairs are compared
BLOCK = 512  # rows of that comparison at once
BANDS = 3  # parts of a hash in the search among more


def without_copies(
    choices: Sequence[Choice], settings: Duplicates
) -> tuple[list[Choice], list[Drop]]:
    """Of one person's pictures: of copies the largest stays, at the same size the first."""
    ranked = sorted(choices, key=lambda choice: (-choice.pixels, choice.order))
    near = defaultdict(list)
    for first, second, bits in copies(ranked, settings):
        near[second].append((bits, first))
    kept: set[int] = set()
    dropped = []
    for number, choice in enumerate(ranked):
        better = min(((b, first) for b, first in near[number] if first in kept), default=None)
        if better is None:
            kept.add(number)
            continue
        bits, first = better
        dropped.append((choice.order, _drop(choice, ranked[first], bits, settings, "")))
    stay = sorted((ranked[number] for number in kept), key=lambda choice: choice.order)
    return stay, [drop for _, drop in sorted(dropped, key=lambda pair: pair[0])]


def of_two_people(
    choices: Sequence[Choice], settings: Duplicates
) -> tuple[list[Choice], list[Drop]]:
    """Pictures under two names: both go, or the one that verification likes less."""
    gone: dict[int, Drop] = {}
    for first, second, bits in sorted(copies(choices, settings)):
        one, other = choices[first], choices[second]
        if one.identity == other.identity or (
            settings.across == "worse" and (first in gone or second in gone)
        ):
            continue
        pairs = [(first, other), (second, one)]
        if settings.across == "worse":
            # Of two equal ones the later goes.
            first_is_worse = (one.score or 0.0) < (other.score or 0.0)
            pairs = pairs[:1] if first_is_worse else pairs[1:]
        for number, instead in pairs:
            drop = _drop(choices[number], instead, bits, settings, " of two people")
            gone.setdefault(number, drop)
    kept = [choice for number, choice in enumerate(choices) if number not in gone]
    return kept, [gone[number] for number in sorted(gone)]


def copies(choices: Sequence[Choice], settings: Duplicates) -> Iterator[tuple[int, int, int]]:
    """(number, larger number, differing bits) of pictures that are copies of one another."""
    same = defaultdict(list)
    for number, choice in enumerate(choices):
        same[choice.picture.key].append(number)
    for numbers in same.values():
        for i, first in enumerate(numbers):
            yield from ((first, second, 0) for second in numbers[i + 1 :])
    if settings.bits is None:
        return
    hashes = np.array([as_number(choice.look.phash) for choice in choices], np.uint64)
    for first, second, bits in near_pairs(hashes, settings.bits):
        one, other = choices[first], choices[second]
        if one.picture.key == other.picture.key:
            continue
        if float(one.embedding @ other.embedding) >= settings.same_face:
            yield first, second, bits


def near_pairs(hashes: np.ndarray, bits: int) -> Iterator[tuple[int, int, int]]:
    """All pairs (i < j, differing bits) of uint64 [n] that differ in at most ``bits`` of 64."""
    if len(hashes) <= ALL_PAIRS:
        for start in range(0, len(hashes), BLOCK):
            rows = hashes[start : start + BLOCK]
            apart = np.bitwise_count(rows[:, None] ^ hashes[None, start:])
            for row, column in np.argwhere(apart <= bits):
                if row < column:
                    yield start + int(row), start + int(column), int(apart[row, column])
        return
    yield from _by_bands(hashes, bits)


def _by_bands(hashes: np.ndarray, bits: int) -> Iterator[tuple[int, int, int]]:
    """The same without looking at all pairs: of BANDS parts of two near hashes at least one
    differs in no more than bits / BANDS, so pairs are sought among hashes with almost that part."""
    width = -(-64 // BANDS)
    numbers = np.arange(len(hashes))
    for band in range(BANDS):
        size = min(width, 64 - band * width)
        part = ((hashes >> np.uint64(band * width)) & np.uint64((1 << size) - 1)).astype(np.int64)
        order = np.argsort(part, kind="stable")
        ranked = part[order]
        for mask in _masks(size, bits // BANDS):
            sought = part ^ mask
            low = np.searchsorted(ranked, sought, "left")
            high = np.searchsorted(ranked, sought, "right")
            counts = high - low
            left = np.repeat(numbers, counts)
            within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
            right = order[np.repeat(low, counts) + within]
            left, right = left[left < right], right[left < right]
            apart = np.bitwise_count(hashes[left] ^ hashes[right])
            near = apart <= bits
            for i, j, distance in zip(left[near], right[near], apart[near], strict=True):
                if _first_band(int(hashes[i] ^ hashes[j]), width, bits // BANDS) == band:
                    yield int(i), int(j), int(distance)


def _masks(size: int, most: int) -> list[int]:
    """All numbers of ``size`` bits with at most ``most`` of them set."""
    masks = [0]
    for _ in range(most):
        masks += [mask | 1 << bit for mask in masks for bit in range(size)]
        masks = sorted(set(masks))
    return masks


def _first_band(difference: int, width: int, most: int) -> int:
    """The first band in which two hashes are near, which is where their pair is told."""
    for band in range(BANDS):
        part = (difference >> (band * width)) & ((1 << width) - 1)
        if part.bit_count() <= most:
            return band
    return -1


def _drop(choice: Choice, instead: Choice, bits: int, settings: Duplicates, of: str) -> Drop:
    same = choice.picture.key == instead.picture.key
    reason = ("same file" if same else "near copy") + of
    drop = choice.drop(STAGE, reason, bits, None if same else settings.bits)
    return replace(drop, of=instead.picture.key)
