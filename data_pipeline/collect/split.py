"""Names that are one person become one; then every person is in one split.

Split after merging: otherwise one person under two spellings could be trained on and held out. Who
was held out in an earlier run of the work folder stays so (Held); the places that are left are
drawn.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from data_pipeline.collect.choices import Choice
from data_pipeline.collect.records import Picture, origins
from data_pipeline.collect.settings import SettingsError, Split

TRAIN, IN_TRAIN, OUT_OF_TRAIN, OUT_OF_DOMAIN = "train", "in_train", "out_of_train", "out_of_domain"
SETS = (TRAIN, IN_TRAIN, OUT_OF_TRAIN, OUT_OF_DOMAIN)
BLOCK = 1024


def merged_names(
    centres: Mapping[str, np.ndarray], pictures: Mapping[str, int], least: float | None
) -> tuple[dict[str, str], list[tuple[str, str, float]]]:
    """Which name each name goes by, and the pairs that said so with their cosine.

    Args:
        centres: name -> median direction [d]. pictures: name -> how many it has.
        least: cosine of two names that are one person; None merges none.

    Returns:
        ({name: the name with most pictures, at a tie the first in the alphabet}, pairs).
    """
    names = sorted(centres)
    leader = {name: name for name in names}
    if least is None or len(names) < 2:
        return leader, []

    def find(name: str) -> str:
        while leader[name] != name:
            leader[name] = leader[leader[name]]
            name = leader[name]
        return name

    rows, pairs = np.stack([centres[name] for name in names]), []
    for start in range(0, len(names), BLOCK):
        cosine = rows[start : start + BLOCK] @ rows[start:].T
        for i, j in np.argwhere(cosine >= least):
            if i < j:
                one, other = names[start + i], names[start + j]
                pairs.append((one, other, round(float(cosine[i, j]), 4)))
                leader[find(other)] = find(one)
    groups = defaultdict(list)
    for name in names:
        groups[find(name)].append(name)
    final = {}
    for group in groups.values():
        best = min(group, key=lambda name: (-pictures[name], name))
        final |= dict.fromkeys(group, best)
    return final, pairs


@dataclass(frozen=True)
class Held:
    """What earlier runs held out, the first of them first: names, and keys of pictures of in_train.

    With it nobody who was held out is trained on when people are added. It forgets nobody, so that
    a threshold that drops somebody for one run changes nothing in the next.
    """

    people: tuple[str, ...] = ()
    pictures: tuple[str, ...] = ()

    def renamed(self, names: Mapping[str, str]) -> "Held":
        """With the names that people go by after merging."""
        return replace(self, people=_once(names.get(name, name) for name in self.people))

    def with_(self, people: Iterable[str], pictures: Iterable[str]) -> "Held":
        """With those of another run."""
        return Held(_once([*self.people, *people]), _once([*self.pictures, *pictures]))


def split_people(
    choices: Sequence[Choice], settings: Split, before: Held | None = None
) -> dict[str, str]:
    """The set of each person: "train", "out_of_train" or "out_of_domain".

    People of ``in_train`` are trained on; their held-out picture is ``held_out``'s.

    Args:
        before: what earlier runs held out; those come first.

    Raises:
        SettingsError: nobody would be left to train on.
    """
    foreign: dict[str, bool] = {}
    for choice in choices:
        foreign[choice.identity] = foreign.get(choice.identity, True) and is_foreign(
            choice.picture, settings
        )
    sets = {name: OUT_OF_DOMAIN for name, found in foreign.items() if found}
    own = sorted((name for name in foreign if name not in sets), key=lambda n: drawn(n, settings))
    if own and settings.out_of_train >= len(own):
        raise SettingsError(
            f"split.out_of_train={settings.out_of_train}: of {len(own)} people nobody is left to "
            "train on; hold out fewer"
        )
    known = set(own)
    ranked = _once([*(n for n in (before or Held()).people if n in known), *own])
    sets |= dict.fromkeys(ranked[: settings.out_of_train], OUT_OF_TRAIN)
    return sets | dict.fromkeys(ranked[settings.out_of_train :], TRAIN)


def is_foreign(picture: Picture, settings: Split) -> bool:
    """Whether a picture's origin is one of ``out_of_domain``."""
    names = origins(picture.source, picture.url, picture.origin)
    return not set(names).isdisjoint(settings.out_of_domain)


def unmatched(pictures: Iterable[Picture], settings: Split) -> list[str]:
    """Names of ``out_of_domain`` that are no picture's origin."""
    found = {name for p in pictures for name in origins(p.source, p.url, p.origin)}
    return [name for name in settings.out_of_domain if name not in found]


def held_out(
    choices: Sequence[Choice],
    sets: Mapping[str, str],
    settings: Split,
    least: int,
    before: Held | None = None,
) -> set[int]:
    """Orders of the pictures of ``in_train``: one of each person, who keeps ``least`` others.

    It is the one of ``before``, else the one of which verification is surest; and it is not trained
    on, so that validation never shows the model a picture that it has learned.
    """
    of_person = defaultdict(list)
    for choice in choices:
        if sets[choice.identity] == TRAIN:
            of_person[choice.identity].append(choice)
    able = {name: own for name, own in of_person.items() if len(own) > least}
    known = {c.picture.key: c for own in able.values() for c in own}
    chosen: dict[str, Choice] = {}
    for key in (before or Held()).pictures:
        if key in known:
            chosen.setdefault(known[key].identity, known[key])
    for name in sorted(able, key=lambda name: drawn(name, settings)):
        best = max(able[name], key=lambda c: (c.score or 0.0, -c.order))
        chosen.setdefault(name, best)
    return {choice.order for choice in list(chosen.values())[: settings.in_train]}


def drawn(name: str, settings: Split) -> str:
    """A number that is drawn for a name, by which places are given."""
    return hashlib.sha256(f"{settings.seed} {name}".encode()).hexdigest()


def _once(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))


def nearest_across(
    centres: Mapping[str, np.ndarray], sets: Mapping[str, str]
) -> tuple[str, str, float] | None:
    """The two people of different sets who look most alike, with their cosine."""
    best = None
    by_set = defaultdict(list)
    for name in sorted(centres):
        by_set[sets[name]].append(name)
    kinds = sorted(by_set)
    for i, one in enumerate(kinds):
        for other in kinds[i + 1 :]:
            rows = np.stack([centres[name] for name in by_set[one]])
            columns = np.stack([centres[name] for name in by_set[other]])
            for start in range(0, len(rows), BLOCK):
                cosine = rows[start : start + BLOCK] @ columns.T
                place = np.unravel_index(cosine.argmax(), cosine.shape)
                value = round(float(cosine[place]), 4)
                if best is None or value > best[2]:
                    best = (by_set[one][start + place[0]], by_set[other][place[1]], value)
    return best
