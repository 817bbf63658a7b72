"""A folder of images and a table of what they show.

    faces/0001.png  faces/0002.png  ...  faces/attributes.csv:

    image,glasses,beard
    0001.png,1,0
    0002.png,yes,

A column of 1/0, 1/-1, yes/no or true/false is an attribute, an empty cell is unknown. A column of
words or of other numbers is a class, of which exactly one holds. A column ``split`` says which
images are for training; without it every tenth is held out. CelebA's own tables are read as well.
"""

import hashlib
import posixpath
from collections import defaultdict
from pathlib import Path

import numpy as np

from data_pipeline.attributes.columns import read_values
from data_pipeline.attributes.folder_pictures import (
    FolderPictures,
    find_images,
    read_sizes,
    report_sizes,
)
from data_pipeline.attributes.labelled import AttributeData, Description, LabelledImages
from data_pipeline.attributes.table import (
    CELEBA_SPLITS,
    CELEBA_TABLE,
    Table,
    TableError,
    check_attributes,
    find_table,
    others_suffix,
    read_table,
)
from data_pipeline.pictures.copies import content_digest
from data_pipeline.text_files import TextError, read_lines

CELEBA_TERMS = (
    "CelebA is for non-commercial research only; its pictures belong to their owners "
    "(MMLAB, CUHK: https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html)"
)
# Whether an image is held out.
SPLITS = {"train": False, "0": False}
SPLITS |= dict.fromkeys(("val", "valid", "validation", "test", "1", "2"), True)
HELD_OUT = 10  # every tenth image, if no table says which


def describe_folder(
    folder: str | Path, *, size: int, csv: str = "", channels: int = 3
) -> Description:
    """What open_folder would describe, from the table alone; arguments and errors as there."""
    return Description(read_values(_open_table(Path(folder), csv))[0], _shape(size, channels))


def open_folder(
    folder: str | Path, *, size: int, csv: str = "", channels: int = 3
) -> AttributeData:
    """The images of a folder and its subfolders, uint8 [size, size, channels].

    Images of other sizes are centre-cropped to squares and scaled; one printed line says so.

    Args:
        folder: the folder with the images.
        size: of the images, in pixels.
        csv: the table; "": the only one in the folder.
        channels: 3, or 1 for grey.

    Raises:
        TableError: the table does not match the images, or one of them cannot be read.
    """
    folder = Path(folder)
    _shape(size, channels)
    table = _open_table(folder, csv)
    pictures = find_images(folder)
    picture_of = _match(folder, table, pictures)
    vocabulary, values = read_values(table)
    held, split_file = _read_splits(folder, table, pictures, picture_of)
    rows = _one_row_each(folder, table, pictures, picture_of, values, held)
    values, held = values[rows], held[rows]
    _check_split(folder, held, split_file)
    report_sizes(folder, read_sizes(folder, pictures), size)
    mark = _fingerprint(folder, pictures, [table.path, split_file], size, channels)

    def part(chosen, name: str) -> LabelledImages:
        paths = [str(folder / pictures[i]) for i in np.flatnonzero(chosen)]
        images = FolderPictures(paths, size, channels)
        return LabelledImages(images, values[chosen], f"folder-{mark}-{name}")

    return AttributeData(
        vocabulary,
        part(~held, "train"),
        part(held, "test"),
        terms=CELEBA_TERMS if table.path.stem == Path(CELEBA_TABLE).stem else "",
        mirror=channels == 3 and not vocabulary.groups,
    )


def _shape(size: int, channels: int) -> tuple[int, int, int]:
    if channels not in (1, 3):
        raise ValueError(f"channels={channels}: pictures have 1 (grey) or 3 (colour)")
    return size, size, channels


def _open_table(folder: Path, csv: str) -> Table:
    table = read_table(find_table(folder, csv or None))
    check_attributes(table)
    return table


# ---- matching rows and images ----------------------------------------------------------------


class Names:
    """Finds images by their names in a table.

    A name is a path relative to the folder, or a file name; both with or without extension.
    """

    def __init__(self, pictures: list[str]):
        self._levels = [defaultdict(list) for _ in range(4)]
        for number, picture in enumerate(pictures):
            name = posixpath.basename(picture)
            keys = (picture, _without_ending(picture), name, _without_ending(name))
            for level, key in zip(self._levels, keys, strict=True):
                level[key].append(number)

    def find(self, name: str) -> list[int]:
        """The images with that name: [] if there is none, several if it is ambiguous."""
        name = posixpath.normpath(name.replace("\\", "/"))
        return next((level[name] for level in self._levels if name in level), [])


def _without_ending(path: str) -> str:
    return posixpath.splitext(path)[0]


def _match(folder: Path, table: Table, pictures: list[str]) -> list[int]:
    """The index of each row's image."""
    names, found, missing = Names(pictures), [], []
    for row, name in enumerate(table.column(table.file_column)):
        numbers = names.find(name)
        if len(numbers) > 1:
            both = " and ".join(pictures[i] for i in numbers[:2])
            raise TableError(f"{table.at(row)}: {name!r} may be {both}; write which")
        found += numbers
        if not numbers:
            missing.append(row)
    if missing:
        others = f", nor are the pictures of {len(missing) - 1} other rows"
        raise TableError(
            f"{table.at(missing[0])}: {table.rows[missing[0]][table.file_column]!r} is not an "
            f"image in {folder}{others if len(missing) > 1 else ''}; add the pictures or remove "
            "the rows"
        )
    _check_all_named(folder, table.path, pictures, set(found))
    return found


def _check_all_named(folder: Path, table: Path, pictures: list[str], named: set[int]) -> None:
    without = [picture for i, picture in enumerate(pictures) if i not in named]
    if without:
        others = others_suffix(len(without) - 1, "has", "have")
        raise TableError(
            f"{folder / without[0]} has no row in {table.name}{others}: add the rows or remove the "
            "pictures"
        )


def _one_row_each(folder, table: Table, pictures, picture_of, values, held) -> np.ndarray:
    """[pictures] the row of each image; TableError if an image has two different rows."""
    rows = np.full(len(pictures), -1)
    for row, picture in enumerate(picture_of):
        first = rows[picture]
        if first < 0:
            rows[picture] = row
        elif held[first] != held[row] or (values[first] != values[row]).any():
            raise TableError(
                f"{table.at(row)}: {pictures[picture]} has other values in line "
                f"{table.lines[first]}; remove one of the two"
            )
    return rows


# ---- splits ------------------------------------------------------------------------------------


def _read_splits(folder: Path, table: Table, pictures, picture_of):
    """Whether each row's image is held out, [rows] bool; and the file that says so, or None."""
    if table.split_columns:
        return np.array(_split_cells(table, table.split_columns[0])), table.path
    for place in dict.fromkeys((table.path.parent, folder)):
        for path in (place / name for name in CELEBA_SPLITS):
            if path.is_file():
                held = _read_split_file(folder, path, pictures)
                return np.array([held[picture] for picture in picture_of]), path
    return _every_tenth(pictures)[picture_of], None


def _split_cells(table: Table, place: int) -> list[bool]:
    held = [SPLITS.get(cell.casefold()) for cell in table.column(place)]
    if None in held:
        row = held.index(None)
        raise TableError(
            f"{table.at(row)}: {table.names[place]} is {table.rows[row][place]!r}; write train, "
            "val or test"
        )
    return [bool(out) for out in held]


def _read_split_file(folder: Path, path: Path, pictures: list[str]) -> dict[int, bool]:
    """CelebA's list of splits: whether an image is held out, by its index."""
    if path.suffix == ".csv":
        table = read_table(path)
    else:
        try:
            lines = [line.split() for line in read_lines(path)]
        except TextError as error:
            raise TableError(str(error)) from None
        rows = {number: cells for number, cells in enumerate(lines, 1) if cells}
        bad = next((number for number, cells in rows.items() if len(cells) != 2), None)
        if bad:
            raise TableError(f"{path} line {bad}: write a picture's name and 0, 1 or 2")
        table = Table(path, ["image_id", "partition"], list(rows.values()), list(rows))
    if not table.split_columns:
        raise TableError(f"{path}: no column named partition; name it so")
    names, held = Names(pictures), {}
    cells = _split_cells(table, table.split_columns[0])
    for name, out in zip(table.column(table.file_column), cells, strict=True):
        held |= dict.fromkeys(names.find(name), out)  # it may list more images than are here
    _check_all_named(folder, path, pictures, set(held))
    return held


def _every_tenth(pictures: list[str]) -> np.ndarray:
    """[pictures] bool, by their names alone, so that adding images does not move others."""
    digests = [hashlib.sha256(picture.encode()).digest()[:8] for picture in pictures]
    numbers = np.array([int.from_bytes(digest, "big") for digest in digests], np.uint64)
    held = numbers % HELD_OUT == 0
    if len(pictures) > 1:  # a few may all be on one side by chance
        held[numbers.argmin()] |= not held.any()
        held[numbers.argmax()] &= not held.all()
    return held


def _check_split(folder: Path, held: np.ndarray, split_file: Path | None) -> None:
    if held.any() and not held.all():
        return
    if split_file is None:
        raise TableError(f"{folder}: a single image; at least two are needed, one of them held out")
    wanted, have = ("train", "held out") if held.all() else ("test", "for training")
    raise TableError(f"{split_file}: all pictures are {have}; write {wanted} for some of them")


# ---- fingerprint -------------------------------------------------------------------------------


def _fingerprint(folder: Path, pictures, tables, size: int, channels: int) -> str:
    """A digest of the tables, the images' names and contents, and their target format."""
    digest = hashlib.sha256(f"{size} {channels}".encode())
    for path in filter(None, dict.fromkeys(tables)):
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    for picture in pictures:
        digest.update(f"\n{picture} {content_digest(str(folder / picture))}".encode())
    return digest.hexdigest()[:16]
