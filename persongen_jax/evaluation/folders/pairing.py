"""Compares two measured folders image by image: the same person, prompt and seed in both."""

from collections.abc import Sequence
from dataclasses import dataclass

from persongen_jax.evaluation.folders.entries import Folder, numbered
from persongen_jax.evaluation.folders.scoring import Scores
from persongen_jax.evaluation.folders.sidecars import listed
from persongen_jax.metrics.base import Metric
from persongen_jax.metrics.intervals.pairs import difference, pair
from persongen_jax.metrics.intervals.people import Interval
from persongen_jax.metrics.intervals.settle import people_to_settle, seeds_to_settle


@dataclass(frozen=True)
class Difference:
    """A metric of one folder minus that of another, on the same people, prompts and seeds.

    Attributes:
        metric: whose.
        first, second: the folders' names.
        interval: of the mean difference; its ``reason`` says why there are no limits.
        people, seeds: how many would settle the sign, see intervals/settle.py; None: no number is
            known that would.
        left_out: which images have no partner; "" if none.
    """

    metric: Metric
    first: str
    second: str
    interval: Interval
    people: int | None
    seeds: int | None
    left_out: str


def give_keys(folders: Sequence[Folder]) -> list[str]:
    """Make the keys of every folder's images unique, by one rule for all; sentences about it.

    Excluded images count in the numbers, so that those after them keep their partners, and the
    seeds that they lack do not matter.
    """
    without = [
        folder.name
        for folder in folders
        if not all(each.seed for each in folder.entries if each.file not in folder.excluded)
    ]
    notes = []
    for folder in folders:
        folder.entries, changed = numbered(folder.entries, with_seeds=not without)
        if changed and not without:
            notes.append(
                f"{folder.name}: {changed} images share person, prompt and seed with another, or "
                "have none: they are numbered in the order of their files"
            )
    if without:
        notes.append(
            f"not every seed is known ({', '.join(without)}): images of a person and prompt are "
            "numbered in the order of their files"
        )
    return notes


def check_common(first: Folder, second: Folder) -> None:
    """Add notes on what only one of two folders has.

    Raises:
        ValueError: they have no image of the same person, prompt and seed.
    """
    ours, theirs = ([entry.key for entry in folder.entries] for folder in (first, second))
    both = set(ours) & set(theirs)
    for i, what in enumerate(("people", "prompts", "seeds")):
        one, other = ({key[i] for key in keys} for keys in (ours, theirs))
        if not both and not one & other:
            raise ValueError(
                f"{first.name} and {second.name} have no {what} in common "
                f"({listed(sorted(one))}; {listed(sorted(other))}), and only images of the same "
                "person, prompt and seed are compared: score them one by one"
            )
        for folder, rest in ((first, one - other), (second, other - one)):
            if rest:
                folder.notes.append(
                    f"{len(rest)} {what} of {folder.name} are not in "
                    f"{(second if folder is first else first).name}: {listed(sorted(rest))}; means "
                    "of the two are about different images, differences only about common ones"
                )
    if not both:
        raise ValueError(
            f"{first.name} and {second.name} have people, prompts and seeds in common, but no "
            "image with all three: score them one by one"
        )


def unequal_sets(scores: Sequence[Scores]) -> list[str]:
    """A sentence for each metric of sets whose folders have other numbers of images."""
    found = []
    for name, metric in scores[0].metrics.items():
        numbers = [each.measures[name]["n"] for each in scores if name in each.measures]
        if metric.over == "set" and len(set(numbers)) > 1:
            found.append(
                f"{metric.title} depends on the number of images, and these folders have "
                f"{', '.join(map(str, numbers))}: its figures do not compare"
            )
    return found


def differences(first: Scores, second: Scores) -> list[Difference]:
    """The differences of all metrics with a value for each image, ``first`` minus ``second``."""
    found = []
    for name, metric in first.metrics.items():
        ours, theirs = first.of_images(name), second.of_images(name)
        if ours is None or theirs is None:
            continue
        keys = [[entry.key for entry in scores.entries] for scores in (first, second)]
        pairs = pair(ours, keys[0], theirs, keys[1])
        found.append(
            Difference(
                metric,
                first.folder.name,
                second.folder.name,
                difference(pairs, metric.bounds),
                people_to_settle(pairs),
                seeds_to_settle(pairs),
                pairs.left_out(),
            )
        )
    return found
