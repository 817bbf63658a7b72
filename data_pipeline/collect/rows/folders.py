"""Folders of images, in all layouts that training reads."""

import os
from pathlib import Path

from data_pipeline.collect.records import Row
from data_pipeline.collect.rows.columns import checked_row, raise_faults
from data_pipeline.collect.rows.place import Place
from data_pipeline.records.folders import read_folder


def read_image_folder(folder: str | Path) -> tuple[list[Row], dict[str, Place], list[str]]:
    """(rows, places, notes); a row's address is file: with the path from the folder's name on.

    Raises:
        FolderError, RowError: no images, or names that cannot be used.
    """
    folder = Path(folder)
    found = read_folder(folder)
    name = folder.resolve().name
    rows, places, faults = [], {}, []
    for image in found.images:
        inside = Path(os.path.relpath(image.path, folder)).as_posix()
        values = {"identity": image.identity, "url": f"file:{name}/{inside}"}
        try:
            row = checked_row({**values, "caption": image.caption})
        except ValueError as error:
            faults.append(f"{inside}: {error}")
            continue
        rows.append(row)
        places[row.key] = Place(image.path)
    raise_faults(str(folder), faults)
    return rows, places, [found.layout, *found.notes]
