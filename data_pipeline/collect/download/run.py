"""The download of a list as both commands run it."""

import json
from collections.abc import Iterable
from pathlib import Path

from data_pipeline.collect.download.results import SUMMARY, lines
from data_pipeline.collect.download.stage import download
from data_pipeline.collect.download_settings import DownloadSettings
from data_pipeline.collect.rows.columns import RowError
from data_pipeline.collect.rows.sources import read_rows


def download_list(
    source: str | Path, columns: Iterable[str], settings: DownloadSettings, work: str | Path
) -> None:
    """Read a list or folder, fetch what is not there yet, and print what came.

    Args:
        columns: "FIELD=NAME", the list's names of our columns.

    Raises:
        RowError: the list cannot be used. DownloadError, StateError, OSError: as ``download``.
    """
    if faulty := [column for column in columns if "=" not in column]:
        raise RowError(f"column {faulty[0]}: FIELD=NAME is needed")
    found = read_rows(source, dict(column.split("=", 1) for column in columns))
    for note in found.notes:
        print(note)
    download(found.rows, settings, work, found.places)
    counted = json.loads((Path(work) / SUMMARY).read_text(encoding="utf-8"))
    print("\n".join(lines(counted)))
