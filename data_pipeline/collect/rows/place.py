"""Where the bytes of a picture lie that needs no download."""

import bisect
import functools
import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO


class PlaceError(ValueError):
    """Bytes that are no longer where they were; the message names the file."""


@dataclass(frozen=True, slots=True)
class Place:
    """A whole file; ``size`` bytes from ``offset`` of a tar; or a cell of a Parquet file.

    A cell has the file's ``column``; ``offset`` is then the number of the row.
    """

    path: str
    offset: int = 0
    size: int | None = None
    column: str = ""

    @contextmanager
    def open(self) -> Iterator[BinaryIO]:
        """The bytes as a file. OSError or PlaceError if they cannot be read."""
        if self.column:
            yield io.BytesIO(_cell(self.path, self.column, self.offset))
            return
        with open(self.path, "rb") as file:
            if self.size is None:
                yield file
                return
            file.seek(self.offset)
            part = file.read(self.size)
            if len(part) < self.size:
                raise PlaceError(f"{self.path}: shorter than it was: copy it again")
            yield io.BytesIO(part)


def _cell(path: str, column: str, number: int) -> bytes:
    first = _first_rows(path)
    group = bisect.bisect_right(first, number) - 1
    cells = _cells(path, column, group)
    if number - first[group] >= len(cells):
        raise PlaceError(f"{path}: shorter than it was: copy it again")
    return cells[number - first[group]]


@functools.lru_cache(64)
def _first_rows(path: str) -> list[int]:
    from pyarrow import parquet

    meta, first, found = parquet.ParquetFile(path).metadata, 0, []
    for group in range(meta.num_row_groups):
        found.append(first)
        first += meta.row_group(group).num_rows
    return found


@functools.lru_cache(1)
def _cells(path: str, column: str, group: int) -> list[bytes]:
    from pyarrow import parquet

    table = parquet.ParquetFile(path).read_row_group(group, columns=[column])
    return [bytes(cell or b"") for cell in table.column(column).to_pylist()]
