"""The attributes of a data set, and the syntax of requests: "glasses=1,beard=0"."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

UNKNOWN = -1
YES = ("1", "yes", "true", "y", "t")
NO = ("0", "no", "false", "n", "f", "-1")
NOT_SAID = ("", "?", "unknown", "nan", "none", "na", "n/a")


class RequestError(ValueError):
    """A request for an unknown attribute, or one that contradicts itself."""


@dataclass(frozen=True)
class Vocabulary:
    """K attributes in a fixed order, each 1 (yes), 0 (no) or unknown.

    Attributes:
        names: of all attributes. Those of a group are named "GROUP=MEMBER".
        groups: maps the name of a group to the names of its attributes, of which exactly one holds.
    """

    names: tuple[str, ...]
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __len__(self):
        return len(self.names)

    @property
    def units(self) -> np.ndarray:
        """[K] int32: one number per single attribute, and one for all members of a group."""
        owners = list(map(self.unit_of, self.names))
        return np.array([list(dict.fromkeys(owners)).index(owner) for owner in owners], np.int32)

    def unit_of(self, name: str) -> str:
        """The group of an attribute; its own name if it has none."""
        return self._group_of(name) or name

    @classmethod
    def of_classes(cls, group: str, members: Sequence[str]) -> "Vocabulary":
        """A single group, such as which digit an image shows."""
        names = tuple(f"{group}={member}" for member in members)
        return cls(names, {group: names})

    def values_of_classes(self, labels: Sequence[int] | np.ndarray) -> np.ndarray:
        """[n, K] int8 for a vocabulary of one group: 1 at ``labels`` [n], 0 elsewhere."""
        return np.eye(len(self), dtype=np.int8)[np.asarray(labels)]

    def parse(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """Parse a request.

        Args:
            text: comma-separated "NAME=VALUE"; a value is 1, 0, yes, no, a fraction between, or
                "unknown"; "GROUP=MEMBER" sets one member to yes and the others of the group to no.
                Case, spaces, "-" and "_" of names do not matter. "" requests nothing.

        Returns:
            values [K] float32 in 0..1, and known [K] float32, 1 for requested attributes.

        Raises:
            RequestError: an unknown name or value, or a contradiction.
        """
        said: dict[str, float] = {}
        for item in filter(None, (part.strip() for part in text.split(","))):
            name, equals, value = (part.strip() for part in item.partition("="))
            if not equals:
                raise RequestError(f"attributes {item!r}: write NAME=VALUE, such as {name}=1")
            for attribute, number in self._read(name, value).items():
                if said.setdefault(attribute, number) != number:
                    raise RequestError(
                        f"attributes {text!r} contradict themselves: {attribute} is given as "
                        f"both {said[attribute]:g} and {number:g}; give it once"
                    )
        self._complete_groups(text, said)
        values, known = np.zeros(len(self), np.float32), np.zeros(len(self), np.float32)
        for attribute, number in said.items():
            place = self.names.index(attribute)
            values[place], known[place] = number, 1
        return values, known

    def describe(self, values: np.ndarray, known: np.ndarray | None = None) -> str:
        """A request that :meth:`parse` reads as these ``values`` [K], where ``known`` [K].

        Args:
            known: None: wherever a value is not UNKNOWN.
        """
        values = np.asarray(values)
        known = values != UNKNOWN if known is None else np.asarray(known) > 0
        grouped = {name: group for group, names in self.groups.items() for name in names}
        said = []
        for name, value, there in zip(self.names, values, known, strict=True):
            if there and name in grouped:
                if value == 1:
                    said.append(name)
            elif there:
                said.append(f"{name}={value:g}")
        return ",".join(said)

    def choose(self, names: Sequence[str]) -> tuple["Vocabulary", list[int]]:
        """The vocabulary of only these attributes or groups, and their places in this one.

        Raises:
            RequestError: an unknown name.
        """
        places = []
        for name in names:
            group = self._find(name, self.groups)
            found = self.groups[group] if group else (self._find(name, self.names),)
            if found[0] is None:
                raise RequestError(self._unknown(name))
            whole = None if group else self._group_of(found[0])
            if whole:
                raise RequestError(f"attributes: {found[0]} is one of a group; choose {whole}")
            places += [self.names.index(each) for each in found]
        places = list(dict.fromkeys(places))
        chosen = tuple(self.names[place] for place in places)
        groups = {g: own for g, own in self.groups.items() if set(own) <= set(chosen)}
        return Vocabulary(chosen, groups), places

    def _read(self, name: str, value: str) -> dict[str, float]:
        """The values of one item, by attribute."""
        group = self._find(name, self.groups)
        if group:
            member = self._find(f"{group}={value}", self.groups[group])
            if member is None and read_value(value) == UNKNOWN:
                return {}
            if member is None:
                members = ", ".join(each.partition("=")[2] for each in self.groups[group])
                raise RequestError(f"attributes: {group}={value} is unknown; there are {members}")
            return {member: 1.0}
        attribute = self._find(name, self.names)
        if attribute is None:
            raise RequestError(self._unknown(name))
        number = read_value(value)
        if number is None:
            raise RequestError(
                f"attributes: {name}={value} is not a value; write 1, 0, a fraction between, or "
                "unknown"
            )
        return {} if number == UNKNOWN else {attribute: number}

    def _complete_groups(self, text: str, said: dict):
        """If one member of a group holds, set the others to no."""
        for group, names in self.groups.items():
            yes = [name for name in names if said.get(name) == 1]
            if len(yes) > 1:
                raise RequestError(
                    f"attributes {text!r} contradict themselves: {' and '.join(yes)} exclude each "
                    f"other; ask for one {group}"
                )
            if yes:
                said.update({name: 0.0 for name in names if name != yes[0]})

    def _find(self, name: str, names) -> str | None:
        wanted = normalise_name(name)
        return next((each for each in names if normalise_name(each) == wanted), None)

    def _group_of(self, attribute: str) -> str | None:
        return next((group for group, own in self.groups.items() if attribute in own), None)

    def _unknown(self, name: str) -> str:
        there = {each: each for each in self.names if not self._group_of(each)}
        there |= {group: f"{group}=MEMBER" for group in self.groups}
        shown = {normalise_name(each): text for each, text in there.items()}
        close = difflib.get_close_matches(normalise_name(name), shown, 1)
        hint = f"; did you mean {shown[close[0]]}?" if close else ""
        return f"attributes: there is no {name!r}; there are {', '.join(shown.values())}{hint}"


def normalise_name(name: str) -> str:
    """The normalised name: case, spaces, "-" and "_" do not distinguish names."""
    return name.casefold().replace(" ", "_").replace("-", "_")


def read_value(text: str) -> float | None:
    """A value as people write it: 0..1, UNKNOWN if empty or unknown, None if it is invalid."""
    text = text.strip().casefold()
    for words, value in ((YES, 1.0), (NO, 0.0), (NOT_SAID, float(UNKNOWN))):
        if text in words:
            return value
    try:
        number = float(text)
    except ValueError:
        return None
    return number if 0 <= number <= 1 else 0.0 if number == -1 else None
