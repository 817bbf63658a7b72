"""The meaning of a table's columns: an attribute, or a class of which exactly one holds."""

from dataclasses import dataclass

import numpy as np

from data_pipeline.attributes.table import Table, TableError
from data_pipeline.attributes.vocabulary import UNKNOWN, Vocabulary, normalise_name, read_value

MOST_MEMBERS = 1000


@dataclass(frozen=True)
class Column:
    """Attributes:
    members: names of a class' members; None for an attribute.
    codes: the meaning of each distinct cell: 1 or 0, or a member's index; UNKNOWN.
    """

    name: str
    members: list[str] | None
    codes: dict[str, int]

    @property
    def constant(self) -> bool:
        return len(set(self.codes.values()) - {UNKNOWN}) < 2

    def values(self, cells: list[str]) -> np.ndarray:
        """[rows, 1], or [rows, members] for a class, int8."""
        codes = np.fromiter(map(self.codes.__getitem__, cells), np.int16, len(cells))
        if self.members is None:
            return codes[:, None].astype(np.int8)
        values = (codes[:, None] == np.arange(len(self.members))).astype(np.int8)
        values[codes == UNKNOWN] = UNKNOWN
        return values


def read_values(table: Table) -> tuple[Vocabulary, np.ndarray]:
    """The columns' meaning and values: the vocabulary, and [rows, K] int8, 1, 0 or UNKNOWN."""
    others = {table.file_column, *table.split_columns}
    places = [place for place in range(len(table.names)) if place not in others]
    columns = [_read_column(table, place) for place in places]
    constant = [column.name for column in columns if column.constant]
    if constant:
        what, these = ("column", "it") if len(constant) == 1 else ("columns", "them")
        raise TableError(
            f"{table.path}: {what} {', '.join(constant)} with the same value in every row; nothing "
            f"can be learnt from {these}, so remove {these}"
        )
    names, groups = [], {}
    for column in columns:
        if column.members is None:
            names.append(column.name)
        else:
            groups[column.name] = tuple(f"{column.name}={member}" for member in column.members)
            names += groups[column.name]
    cells = (column.values(table.column(i)) for i, column in zip(places, columns, strict=True))
    return Vocabulary(tuple(names), groups), np.concatenate(list(cells), axis=1)


def _read_column(table: Table, place: int) -> Column:
    cells = dict.fromkeys(table.column(place))
    read = {cell: read_value(cell) for cell in cells}
    said = {cell: value for cell, value in read.items() if value != UNKNOWN}
    unknown = dict.fromkeys((cell for cell in cells if cell not in said), UNKNOWN)
    numbers = {cell: _number(cell) for cell in said}
    name = table.names[place]
    if -1 in numbers.values() and set(numbers.values()) - {-1, 1, None}:
        raise TableError(
            f"{table.path}: column {name} holds -1 next to other numbers, which may mean no or "
            "unknown; write 1 and 0, and leave unknown cells empty"
        )
    if all(value in (0, 1) for value in said.values()):
        return Column(name, None, {c: int(value or 0) for c, value in said.items()} | unknown)
    if None not in numbers.values():
        members, codes = _number_members(table, place, numbers)
    else:
        _check_words(table, place, said)
        # "none" may be an ordinary word: no hat at all.
        words = [cell for cell in cells if cell in said or cell.casefold() == "none"]
        members, codes = _word_members(words)
    if len(members) > MOST_MEMBERS:
        raise TableError(
            f"{table.path}: column {name} holds {len(members)} different values, more than the "
            f"{MOST_MEMBERS} of a class; remove the column"
        )
    _check_members(table, place, members)
    return Column(name, members, unknown | codes)


def _number(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None


def _number_members(table: Table, place: int, numbers: dict) -> tuple[list[str], dict[str, int]]:
    """The members of a column of whole numbers, in ascending order, and each cell's member."""
    broken = next((cell for cell, number in numbers.items() if not number.is_integer()), None)
    if broken is not None:
        raise TableError(
            f"{_where(table, place, broken)} is {broken}; write 1 or 0, whole numbers or words for "
            "a class, or nothing if it is unknown"
        )
    members = sorted(set(numbers.values()))
    order = {number: i for i, number in enumerate(members)}
    codes = {cell: order[number] for cell, number in numbers.items()}
    return [f"{member:.0f}" for member in members], codes


def _word_members(words: list[str]) -> tuple[list[str], dict[str, int]]:
    """The members of a column of words, in alphabetical order, and each cell's member."""
    spelling = {}
    for word in words:
        spelling.setdefault(normalise_name(word), word)
    order = sorted(spelling)
    place = {word: i for i, word in enumerate(order)}
    return [spelling[word] for word in order], {word: place[normalise_name(word)] for word in words}


def _check_words(table: Table, place: int, said: dict) -> None:
    """TableError for another word in a column of yes and no."""
    # Single letters may be words of a class: m and f.
    letters = {cell for cell in said if len(cell) == 1 and cell.isalpha()}
    clear = {cell for cell, value in said.items() if value in (0, 1)} - letters
    if {said[cell] for cell in clear} == {0, 1}:
        odd = next(cell for cell, value in said.items() if value not in (0, 1))
        raise TableError(
            f"{_where(table, place, odd)} is {odd!r}, but yes or no in other rows; write 1 or 0, "
            "or nothing if it is unknown"
        )


def _check_members(table: Table, place: int, members: list[str]) -> None:
    bad = next((member for member in members if "," in member), None)
    if bad is not None:
        raise TableError(
            f'{_where(table, place, bad)} is {bad!r}; "," separates attributes in requests, so '
            "write it without"
        )


def _where(table: Table, place: int, cell: str) -> str:
    return f"{table.at(table.column(place).index(cell))}: {table.names[place]}"
