"""Reads rows from whatever the user has.

    faces.jsonl, .json, .csv, .tsv, .parquet, each also .gz      addresses, fetched from the network
    a folder of such lists                                       all of them, in the names' order
    a folder of images                                           as read_folder reads it
    shards/*.tar, or one .tar                                    WebDataset
    a folder that img2dataset wrote                              files, webdataset or parquet

Pictures that are there already are read where they lie and go through the same checks.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from data_pipeline.collect.records import Row
from data_pipeline.collect.rows.columns import RowError
from data_pipeline.collect.rows.folders import read_image_folder
from data_pipeline.collect.rows.img2dataset import is_img2dataset, read_img2dataset
from data_pipeline.collect.rows.place import Place
from data_pipeline.collect.rows.tables import ENDINGS, is_table, read_table
from data_pipeline.collect.rows.tars import read_tars
from data_pipeline.pictures.listing import list_images
from data_pipeline.records.names import look_alikes


@dataclass
class Rows:
    """What was read.

    Attributes:
        rows: in the order of the list; no two have the same key.
        places: where a row's picture lies, by the row's key; the others come from the network.
        notes: lines on what was left out or not read.
    """

    rows: list[Row]
    places: dict[str, Place] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def read_rows(source: str | Path, columns: Mapping[str, str] | None = None) -> Rows:
    """The rows of a list, a folder or tars.

    Args:
        source: see above. columns: {field of Row: column} where a list has other names.

    Raises:
        RowError: it cannot be read, or rows cannot be used; they are named, and nothing is fetched.
    """
    path = Path(source)
    if not path.exists():
        raise RowError(f"{path}: no such file or folder")
    if path.suffix.lower() == ".tar":
        found = Rows(*read_tars([path], columns))
    elif path.is_file():
        found = Rows([])
        found.rows, found.notes = read_table(path, columns)
    elif is_img2dataset(path):
        found = Rows(*read_img2dataset(path, columns))
    elif tars := sorted(path.glob("*.tar")):
        found = Rows(*read_tars(tars, columns))
    elif list_images(path):
        if columns:
            raise RowError(f"{path}: a folder of images has no columns ({', '.join(columns)})")
        found = Rows(*read_image_folder(path))
    else:
        tables = sorted(file for file in path.iterdir() if file.is_file() and is_table(file))
        if not tables:
            raise RowError(
                f"{path}: neither images nor tars nor lists ({', '.join(ENDINGS)}) in it"
            )
        found = Rows([])
        for table in tables:
            rows, notes = read_table(table, columns)
            found.rows += rows
            found.notes += notes
    return _once(found)


def _once(found: Rows) -> Rows:
    """Each row once; names that look alike are told."""
    rows = {}
    for row in found.rows:
        rows.setdefault(row.key, row)
    if len(rows) < len(found.rows):
        found.notes.append(
            f"{len(found.rows) - len(rows)} rows repeat an identity and address; the first counts"
        )
    found.rows = list(rows.values())
    found.notes += look_alikes(row.identity for row in found.rows)
    return found
