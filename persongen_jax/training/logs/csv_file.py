"""metrics.csv: the lines of metrics.jsonl as a table, for spreadsheets."""

import csv
import io
import json
from collections.abc import Iterable
from pathlib import Path

from data_pipeline.files import write_text
from data_pipeline.text_files import whole_lines
from persongen_jax.training.logs.retrying_file import RetryingFile


class CsvFile:
    """A table with a column per number and a row per line; a number that is null is an empty cell.

    It is made anew from the lines whenever a run begins or resumes, so a run may turn it on later.

    Args:
        path: of the table.
        source: the metrics.jsonl.
    """

    def __init__(self, path: Path, source: Path):
        self.path, self.source = path, source
        self._open()

    def _open(self):
        rows = [json.loads(line) for line in whole_lines(self.source)]
        self.columns = list(dict.fromkeys(name for row in rows for name in row))
        lines = [self.columns, *map(self._cells, rows)] if rows else []
        write_text(self.path, _text(lines))
        self._file = RetryingFile(self.path)

    def write(self, row: dict) -> None:
        """Add the row that ``source`` has just got."""
        if row.keys() - set(self.columns):  # the first row, or one of a later version of the run
            self._file.close()
            self._open()
        else:
            self._file.write(_text([self._cells(row)]).encode())
            self._file.flush()

    def _cells(self, row: dict) -> list:
        return [row.get(name) for name in self.columns]

    def close(self) -> None:
        self._file.close()


def _text(lines: Iterable[list]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    return text.getvalue()
