"""Names that are one person become one; then every person is in one split.

Split after merging: otherwise one person under two spellings could be trained on and held out.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from data_pipeline.collect.choices import Choice
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


def split_people(choices: Sequence[Choice], settings: Split) -> dict[str, str]:
    """The set of each person: "train", "out_of_train" or "out_of_domain".

    People of ``in_train`` are trained on; their held-out picture is ``held_out``'s.

    Raises:
        SettingsError: nobody would be left to train on.
    """
    sources = defaultdict(set)
    for choice in choices:
        sources[choice.identity].add(choice.picture.source)
    foreign = set(settings.out_of_domain)
    sets = {name: OUT_OF_DOMAIN for name, found in sources.items() if found <= foreign and foreign}
    own = sorted((name for name in sources if name not in sets), key=lambda n: drawn(n, settings))
    if own and settings.out_of_train >= len(own):
        raise SettingsError(
            f"split.out_of_train={settings.out_of_train}: of {len(own)} people nobody is left to "
            "train on; hold out fewer"
        )
    sets |= dict.fromkeys(own[: settings.out_of_train], OUT_OF_TRAIN)
    return sets | dict.fromkeys(own[settings.out_of_train :], TRAIN)


def held_out(
    choices: Sequence[Choice], sets: Mapping[str, str], settings: Split, least: int
) -> set[int]:
    """Orders of the pictures of ``in_train``: one of each person, who keeps ``least`` others.

    It is the one of which verification is surest, and it is not trained on, so that validation
    never shows the model a picture that it has learned.
    """
    of_person = defaultdict(list)
    for choice in choices:
        if sets[choice.identity] == TRAIN:
            of_person[choice.identity].append(choice)
    able = [name for name, own in of_person.items() if len(own) > least]
    chosen = sorted(able, key=lambda name: drawn(name, settings))[: settings.in_train]
    best = (max(of_person[name], key=lambda c: (c.score or 0.0, -c.order)) for name in chosen)
    return {choice.order for choice in best}


def drawn(name: str, settings: Split) -> str:
    """A number that is drawn for a name: who is collected later changes nobody else's place."""
    return hashlib.sha256(f"{settings.seed} {name}".encode()).hexdigest()


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


def sizes(choices: Sequence[Choice], sets: Mapping[str, str]) -> dict[str, tuple[int, int]]:
    """(people, pictures) of each set."""
    people, pictures = defaultdict(set), Counter()
    for choice in choices:
        people[sets[choice.identity]].add(choice.identity)
        pictures[sets[choice.identity]] += 1
    return {name: (len(people[name]), pictures[name]) for name in SETS if name in people}
