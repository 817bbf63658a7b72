"""The stages between measuring and cropping, put together: of one name, then of all of them.

Both are functions of what they get, in whatever order it comes, so that every executor has the same
result.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from data_pipeline.collect import crop, split
from data_pipeline.collect.choices import Choice, Drop
from data_pipeline.collect.duplicates import of_two_people, without_copies
from data_pipeline.collect.filter import filter_pictures
from data_pipeline.collect.refused import Refusals
from data_pipeline.collect.settings import Collect
from data_pipeline.collect.verify import median_direction, verify_person

STAGES = ("download", "refused", "filter", "duplicates", "verify", "crop", "people", "mask")


@dataclass(frozen=True, eq=False)
class Named:
    """What the pictures of one name lead to: those that stay, the others, and what each rule of
    verification would drop."""

    name: str
    kept: list[Choice]
    drops: list[Drop]
    rules: dict[str, int]

    @property
    def centre(self) -> np.ndarray:
        return median_direction(np.stack([choice.embedding for choice in self.kept]))


@dataclass(eq=False)
class Chosen:
    """What is left of all pictures.

    Attributes:
        kept: by order. sets: person -> set. held: orders of the pictures of in_train.
        names: name -> the person's. merged: pairs of names that are one person, and their cosine.
        nearest: the two people of different sets who look most alike.
    """

    kept: list[Choice]
    drops: list[Drop]
    sets: dict[str, str] = field(default_factory=dict)
    held: set[int] = field(default_factory=set)
    names: dict[str, str] = field(default_factory=dict)
    merged: list[tuple[str, str, float]] = field(default_factory=list)
    rules: dict[str, int] = field(default_factory=dict)
    nearest: tuple[str, str, float] | None = None

    def set_of(self, choice: Choice) -> str:
        return split.IN_TRAIN if choice.order in self.held else self.sets[choice.identity]


def of_name(name: str, choices: Iterable[Choice], settings: Collect, refused: Refusals) -> Named:
    """Refuse, filter, remove copies, verify, and see where the crop would be."""
    left = sorted(choices, key=lambda choice: choice.order)
    left, drops = refused.applied(left, settings.measure.recogniser)
    left, gone = filter_pictures(left, settings.filter)
    drops += gone
    left, gone = without_copies(left, settings.duplicates)
    drops += gone
    left, gone, rules = verify_person(left, settings.verify)
    drops += gone
    kept = []
    for choice in left:
        if crop.square_of(choice, settings.crop) is None:
            share = settings.crop.min_face_share
            drops.append(choice.drop(crop.STAGE, "no square around the face", None, share))
        else:
            kept.append(choice.with_(identity=name))
    return Named(name, kept, drops, rules)


def of_all(people: Iterable[Named], settings: Collect, before: split.Held | None = None) -> Chosen:
    """Merge names that are one person, remove what two people share, split by person.

    Args:
        before: whom earlier runs held out.
    """
    found = sorted(people, key=lambda person: person.name)
    drops = [drop for person in found for drop in person.drops]
    rules: Counter[str] = Counter()
    for person in found:
        rules.update(person.rules)
    full = [person for person in found if person.kept]
    counts = {person.name: len(person.kept) for person in full}
    centres = {person.name: person.centre for person in full}
    names, pairs = split.merged_names(centres, counts, settings.verify.merge)
    left, gone = _merged(full, names, settings)
    drops += gone
    left, gone = of_two_people(left, settings.duplicates)
    drops += gone
    left, gone = _large_groups(left, settings.verify.min_pictures)
    drops += gone
    before = (before or split.Held()).renamed(names)
    sets = split.split_people(left, settings.split, before) if left else {}
    held = split.held_out(left, sets, settings.split, settings.verify.min_pictures, before)
    own = defaultdict(list)
    for choice in left:
        own[choice.identity].append(choice.embedding)
    final = {name: median_direction(np.stack(rows)) for name, rows in own.items()}
    nearest = split.nearest_across(final, sets)
    return Chosen(left, sorted_drops(drops), sets, held, names, pairs, dict(rules), nearest)


def sorted_drops(drops: Iterable[Drop]) -> list[Drop]:
    """By stage, then by the pictures' order."""
    return sorted(drops, key=lambda drop: (STAGES.index(drop.stage), drop.order, drop.key))


def _merged(people: Sequence[Named], names: dict[str, str], settings: Collect):
    groups = defaultdict(list)
    for person in people:
        groups[names[person.name]].append(person)
    left, drops = [], []
    for name, group in groups.items():
        choices = [choice.with_(identity=name) for person in group for choice in person.kept]
        if len(group) > 1:  # what two spellings share
            choices, gone = without_copies(choices, settings.duplicates)
            drops += gone
        left += choices
    return sorted(left, key=lambda choice: choice.order), drops


def _large_groups(choices: Sequence[Choice], least: int):
    counts = Counter(choice.identity for choice in choices)
    kept = [choice for choice in choices if counts[choice.identity] >= least]
    drops = [
        choice.drop("people", "too few pictures of the person", counts[choice.identity], least)
        for choice in choices
        if counts[choice.identity] < least
    ]
    return kept, drops


__all__ = ["STAGES", "Chosen", "Named", "of_all", "of_name", "sorted_drops"]
