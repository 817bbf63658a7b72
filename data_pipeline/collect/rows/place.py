"""Where the bytes of a picture lie that needs no download."""

import bisect
import functools
import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO


class PlaceError(ValueError):
    """Bytes that are no longer where they were; the message names the file, ``why`` does not."""

    def __init__(self, path: str, why: str):
        super().__init__(f"{path}: {why}: copy it again")
        self.why = why


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
                raise PlaceError(self.path, "shorter than it was")
            yield io.BytesIO(part)


def _cell(path: str, column: str, number: int) -> bytes:
    import pyarrow

    try:
        # One at a time: threads at the same group would each read all of it.
        with _reading:
            first = _first_rows(path)
            group = bisect.bisect_right(first, number) - 1
            cells = _cells(path, column, group)
    except OSError:
        raise
    except (pyarrow.ArrowException, ValueError, LookupError) as error:
        raise PlaceError(path, "not the Parquet that it was") from error
    if number - first[group] >= len(cells):
        raise PlaceError(path, "shorter than it was")
    return cells[number - first[group]]


_reading = threading.Lock()


@functools.lru_cache(64)
def _first_rows(path: str) -> list[int]:
    from pyarrow import parquet

    meta, first, found = parquet.ParquetFile(path).metadata, 0, []
    for group in range(meta.num_row_groups):
        found.append(first)
        first += meta.row_group(group).num_rows
    return found


@functools.lru_cache(2)  # at the end of a group some threads are in the next one
def _cells(path: str, column: str, group: int) -> list[bytes]:
    from pyarrow import parquet

    table = parquet.ParquetFile(path).read_row_group(group, columns=[column])
    return [bytes(cell or b"") for cell in table.column(column).to_pylist()]
