"""What img2dataset wrote: pictures as files, in tars or in Parquet, and a table of each shard.

    00000/000000000.jpg, .json, .txt    output_format=files
    00000.tar                           output_format=webdataset
    00000.parquet                       beside both: what became of each row; for
                                        output_format=parquet with the pictures in column jpg
    00000_stats.json                    counts, which are not read

A row that it could not fetch has no place, so that it is fetched by its address. The sha256 of its
table is of the file that it fetched; it writes pictures anew, so the hash is not compared.
"""

import re
from collections.abc import Mapping
from pathlib import Path

from data_pipeline.collect.records import Row
from data_pipeline.collect.rows.columns import RowError, find_columns, make_row, raise_faults
from data_pipeline.collect.rows.place import Place
from data_pipeline.collect.rows.tables import import_parquet, read_entries
from data_pipeline.collect.rows.tars import read_samples
from data_pipeline.pictures.listing import is_image_name

SHARD = re.compile(r"(\d{5,})(_stats\.json|\.parquet|\.tar)?")
PICTURES = ("jpg", "png", "webp")  # columns, by encode_format
READ_ALONG = {"key", "status", "error_message", "width", "height", "original_width", "exif"}
READ_ALONG |= {"original_height", "md5", "sha256", "sha512", *PICTURES}


def is_img2dataset(folder: str | Path) -> bool:
    """Whether a folder looks like its output: a shard's table with its statistics."""
    folder = Path(folder)
    stats = (file.name.removesuffix("_stats.json") for file in folder.glob("*_stats.json"))
    return any(SHARD.fullmatch(name) and (folder / f"{name}.parquet").exists() for name in stats)


def read_img2dataset(
    folder: str | Path, columns: Mapping[str, str] | None = None
) -> tuple[list[Row], dict[str, Place], list[str]]:
    """(rows, places, notes).

    Raises:
        RowError: a table lacks a column, or rows cannot be used.
    """
    folder = Path(folder)
    rows, places, faults, idle, absent = [], {}, [], {}, 0
    for table in sorted(folder.glob("*.parquet")):
        shard = table.name.removesuffix(".parquet")
        if not SHARD.fullmatch(shard):
            continue
        entries = read_entries(table)
        names = dict.fromkeys(name for _, entry in entries for name in entry)
        found, unread = find_columns(names, str(table), columns)
        found.pop("sha256", None)
        idle |= dict.fromkeys(name for name in unread if name not in READ_ALONG)
        there = _pictures(folder, shard)
        for number, entry in entries:
            try:
                row = make_row(entry, found)
            except ValueError as error:
                faults.append(f"{table.name} row {number}: {error}")
                continue
            rows.append(row)
            place = there.get(str(entry.get("key") or number - 1))
            if place is None or str(entry.get("status", "success")) != "success":
                absent += 1
            else:
                places[row.key] = place
    raise_faults(str(folder), faults)
    if not rows:
        raise RowError(f"{folder}: no rows in img2dataset's tables")
    notes = [f"column {name!r} is not read" for name in idle]
    if absent:
        notes.append(f"{absent} rows that img2dataset has no picture of are fetched")
    return rows, places, notes


def _pictures(folder: Path, shard: str) -> dict[str, Place]:
    """Where the pictures of a shard lie, by key."""
    if (folder / shard).is_dir():
        files = sorted(file for file in (folder / shard).iterdir() if is_image_name(file.name))
        return {file.stem: Place(str(file)) for file in files}
    if (tar := folder / f"{shard}.tar").exists():
        return {s.key: s.place for s in read_samples(tar) if s.place is not None}
    file = import_parquet().ParquetFile(folder / f"{shard}.parquet")
    column = next((name for name in PICTURES if name in file.schema_arrow.names), None)
    if column is None:
        return {}
    keys = file.read(columns=["key"]).column("key").to_pylist()
    table = str(folder / f"{shard}.parquet")
    return {str(key): Place(table, i, None, column) for i, key in enumerate(keys)}
