"""A table of what images show: comma, semicolon or tab separated, or in CelebA's own format."""

import csv as csv_format
import functools
import io
import sys
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.attributes.vocabulary import normalise_name
from data_pipeline.text_files import TextError, read_text

TABLES = (".csv", ".tsv")
CELEBA_TABLE = "list_attr_celeba.txt"
CELEBA_SPLITS = ("list_eval_partition.txt", "list_eval_partition.csv")
# These files come with CelebA's table and hold no attributes.
CELEBA_OTHERS = (CELEBA_SPLITS[1], "list_bbox_celeba.csv", "list_landmarks_align_celeba.csv")
FILE_COLUMNS = ("image", "image_id", "file", "filename", "path")
SPLIT_COLUMNS = ("split", "partition")


class TableError(ValueError):
    """An unusable folder; the message names the file, the line and the remedy."""


@dataclass(frozen=True)
class Table:
    """Attributes:
    names: of the columns.
    rows: their cells, one per name, stripped of spaces.
    lines: the line of each row in the file, from 1.
    """

    path: Path
    names: list[str]
    rows: list[list[str]]
    lines: list[int]

    def at(self, row: int) -> str:
        return f"{self.path} line {self.lines[row]}"

    def column(self, place: int) -> list[str]:
        return [row[place] for row in self.rows]

    @functools.cached_property
    def file_column(self) -> int:
        """The index of the column with the images' names."""
        known = [i for i, name in enumerate(self.names) if name.casefold() in FILE_COLUMNS]
        return known[0] if known else 0

    @functools.cached_property
    def split_columns(self) -> list[int]:
        return [i for i, name in enumerate(self.names) if name.casefold() in SPLIT_COLUMNS]


def find_table(folder: Path, csv: str | None) -> Path:
    """The path of the table ``csv``, in the folder or as given; None: the only one."""
    if csv:
        for path in (folder / csv, Path(csv)):
            if path.is_file():
                return path
        raise TableError(f"{folder / csv}: no such table; check config.csv")
    if not folder.is_dir():
        raise TableError(f"{folder}: no such folder; check the path")
    tables = [
        path
        for path in sorted(folder.iterdir())
        if path.name == CELEBA_TABLE
        or (path.suffix.lower() in TABLES and path.name not in CELEBA_OTHERS)
    ]
    if not tables:
        raise TableError(
            f"{folder}: no table of attributes; put a .csv there whose first column names the "
            "pictures, or name one with config.csv"
        )
    if len(tables) > 1:
        names = ", ".join(path.name for path in tables)
        raise TableError(f"{folder}: several tables ({names}); name one with config.csv")
    return tables[0]


def read_table(path: Path) -> Table:
    """Read a table of comma, semicolon or tab separated cells, or in CelebA's own format."""
    try:
        file = io.StringIO(read_text(path), newline="")
        first = file.readline()
        file.seek(0)
        read = _read_celeba if first.strip().isdigit() else _read_separated
        names, rows, lines = read(path, file, first)
    except TextError as error:
        raise TableError(str(error)) from None
    except csv_format.Error as error:
        raise TableError(f"{path}: cannot be read as a table ({error}); save it again") from None
    if not rows:
        raise TableError(f"{path}: no rows below the header; write one for each picture")
    for line, row in zip(lines, rows, strict=True):
        if len(row) != len(names):
            raise TableError(
                f"{path} line {line}: {len(row)} cells, but the header has {len(names)}; write one "
                "for each column, empty if unknown"
            )
    table = Table(path, names, rows, lines)
    _check_names(table)
    return table


def _read_separated(path: Path, file, header: str):
    separator = max(",;\t", key=header.count)
    reader = csv_format.reader(file, delimiter=separator)
    names, rows, lines = None, [], []
    for cells in reader:
        cells = [sys.intern(cell.strip()) for cell in cells]  # "0" and "1" occur often
        if not any(cells):
            continue
        if names is None:
            names = cells
        else:
            rows.append(cells)
            lines.append(reader.line_num)
    if names is None:
        raise TableError(f"{path}: empty; write a header and a row for each picture")
    return names, rows, lines


def _read_celeba(path: Path, file, count: str):
    next(file)
    names = ["image_id", *next(file, "").split()]
    rows, lines = [], []
    for number, line in enumerate(file, 3):
        if line.strip():
            rows.append([sys.intern(cell) for cell in line.split()])
            lines.append(number)
    if len(rows) != int(count):
        raise TableError(
            f"{path} line 1: says {int(count)} rows, but {len(rows)} follow; correct it, or fetch "
            "the file again"
        )
    return names, rows, lines


def _check_names(table: Table) -> None:
    seen = {}
    for place, name in enumerate(table.names, 1):
        if not name:
            raise TableError(
                f"{table.path}: column {place} has no name; write one in the header, or remove it"
            )
        if {",", "="} & set(name) and place - 1 != table.file_column:
            raise TableError(
                f'{table.path}: column {name!r} has "," or "=" in its name; requests such as '
                '"glasses=1,beard=0" need these, so rename it'
            )
        if normalise_name(name) in seen:
            raise TableError(
                f"{table.path}: columns {seen[normalise_name(name)]} and {place} are both named "
                f"{name!r}; rename or remove one"
            )
        seen[normalise_name(name)] = place


def check_attributes(table: Table) -> None:
    if len(table.names) == 1 + len(table.split_columns):
        raise TableError(
            f"{table.path}: no column of attributes next to the images' names; add one, or "
            "separate the columns by commas"
        )


def others_suffix(count: int, *verbs: str) -> str:
    """ ", nor have 3 others", or "" if there are none."""
    if not count:
        return ""
    return f", nor {verbs[0]} 1 other" if count == 1 else f", nor {verbs[-1]} {count} others"


def them(count: int) -> str:
    return "it" if count == 1 else "them"
