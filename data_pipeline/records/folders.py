"""Folders of images as people have them, read alike: whose image each is, and what is said of it.

    person/*.jpg                      every subfolder is a person
    10_ohwx woman/*.jpg               kohya's: repeats, a token and the class word
    instance_images/, class_images/   diffusers' DreamBooth; class images show other people
    metadata.jsonl, metadata.csv      Hugging Face's imagefolder, at the top or in subfolders
    *.jpg                             one person, named like the folder

A ``.txt`` or ``.caption`` file next to an image is its caption; masks.py finds its mask.
"""

import csv
import io
import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from data_pipeline.pictures.listing import list_images
from data_pipeline.records.captions import CLASS_WORDS
from data_pipeline.records.manifest import ManifestError, find_file
from data_pipeline.records.masks import NAME as MASK
from data_pipeline.records.masks import find_masks
from data_pipeline.records.names import look_alikes, plain_name
from data_pipeline.text_files import parse_json_lines, read_text

METADATA = ("metadata.jsonl", "metadata.csv")
KOHYA = re.compile(r"([1-9]\d{0,2})_(.+)")  # repeats, a token and the class word
INSTANCE = ("instance_images", "instance", "instance_data", "instance_data_dir")
CLASS = ("class_images", "class", "class_data", "class_data_dir", "reg", "regularization")
# Folders that hold the people's folders.
CONTAINERS: tuple[str, ...] = (
    "img",
    "image",
    "images",
    "photos",
    "pictures",
    "data",
    "dataset",
    "train",
    "test",
)
CONTAINERS += ("validation", "valid", "val")
SPLITS = ("train", "test", "validation", "valid", "val", "dev", "data", "images")  # nobody's names
CAPTION_FILES = (".txt", ".caption")
FILE_KEYS = ("file_name", "image", "file")  # of a line of metadata, the first that is there
TEXT_KEYS = ("text", "caption", "prompt", "description")
PERSON_KEYS = ("identity", "person", "subject", "label", "name")


class FolderError(ValueError):
    """A folder that cannot be read; the message names it and the remedy."""


@dataclass(frozen=True)
class FolderImage:
    """One image: its path, whose it is, and what the folder says of it; "" for nothing.

    ``repeats``: how often an epoch shows it. ``mask``: the path of its mask.
    """

    path: str
    identity: str
    class_word: str = ""
    caption: str = ""
    repeats: int = 1
    mask: str = ""


@dataclass
class Folder:
    """What a folder holds.

    Attributes:
        images: in the order of their paths.
        layout: how the folder was read, in words.
        notes: lines on what was left out, changed or has no effect.
    """

    images: list[FolderImage]
    layout: str
    notes: list[str] = field(default_factory=list)


def read_folder(folder: str | os.PathLike) -> Folder:
    """Read a folder in whichever of the layouts it is.

    Raises:
        FolderError: it does not exist, holds no image, or a line of its metadata is faulty.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FolderError(f"{folder}: no such folder")
    files = list_images(folder)
    if not files:
        raise FolderError(f"{folder}: no images in it; put some there, a subfolder for each person")
    found = Folder([], "")
    unnamed = [file for file in files if not _is_text(file)]
    if unnamed:
        shown = _some([file.encode("utf-8", "replace").decode() for file in unnamed])
        found.notes.append(
            f"{len(unnamed)} images with names that are not UTF-8 are left out: {shown}"
        )
        files = [file for file in files if _is_text(file)]
    masks = find_masks(files)
    if masks:
        own = set(masks.values())
        files = [file for file in files if file not in own]
        found.notes.append(f"{len(masks)} masks, which config.loss_mask={MASK!r} reads")
    tables = _tables(folder, found)
    if tables:
        found.layout = f"Hugging Face's {tables[0].name}"
        rows = [row for table in tables for row in _read_metadata(folder, table, found)]
        _check_complete(folder, files, rows, found)
    else:
        rows = _read_places(folder, files, found)
    rows = _with_captions(_one_spelling(rows, found), found)
    of_image = {os.path.normpath(folder / image): mask for image, mask in masks.items()}
    found.images = [
        replace(row, mask=str(folder / mask)) if mask else row
        for row in rows
        for mask in [of_image.get(os.path.normpath(row.path), "")]
    ]
    return found


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


# ---- Metadata ----------------------------------------------------------------------------------


def _tables(folder: Path, found: Folder) -> list[Path]:
    """The tables in the folder, at most one of each subfolder, relative to it."""
    tables: dict[Path, Path] = {}
    for name in METADATA:
        for place in sorted(folder.rglob(name)):
            if tables.setdefault(place.parent, place) != place:
                found.notes.append(f"{place.relative_to(folder)} is not read beside {METADATA[0]}")
    return sorted(place.relative_to(folder) for place in tables.values())


def _read_metadata(folder: Path, table: Path, found: Folder) -> list[FolderImage]:
    """The images that a table names, relative to where it lies."""
    path, rows, faults = folder / table, [], []
    for number, entry in _entries(path):
        if not isinstance(entry, dict):
            faults.append(f"line {number}: {type(entry).__name__} instead of an object {{...}}")
            continue
        name = next((entry[key] for key in FILE_KEYS if entry.get(key)), None)
        if not isinstance(name, str):
            faults.append(f"line {number}: no {FILE_KEYS[0]}")
            continue
        try:
            place = Path(find_file(path.parent, "file_name", name))
        except FileNotFoundError as error:
            faults.append(f"line {number}: {error}: no such file")
            continue
        except ManifestError as error:
            faults.append(f"line {number}: {error}")
            continue
        text = next((entry[key] for key in TEXT_KEYS if entry.get(key)), "")
        whose = next((entry[key] for key in PERSON_KEYS if entry.get(key) not in (None, "")), None)
        if whose is None:
            within = [n for n in place.parent.relative_to(folder).parts if n.lower() not in SPLITS]
            whose = within[0] if within else folder.resolve().name
        rows.append(
            FolderImage(str(place), str(whose), str(entry.get("class_word") or ""), str(text))
        )
        read = {*FILE_KEYS, *TEXT_KEYS, *PERSON_KEYS, "class_word"}
        for key in entry.keys() - read:
            note = f"{table}: {key!r} is not read"
            if note not in found.notes:
                found.notes.append(note)
    if faults:
        shown = "\n  ".join(faults[:20])
        more = f"\n  ... and {len(faults) - 20} more" if len(faults) > 20 else ""
        raise FolderError(f"{path}: {len(faults)} lines cannot be used\n  {shown}{more}")
    return rows


def _entries(path: Path) -> Iterable[tuple[int, object]]:
    if path.suffix == ".jsonl":
        return list(parse_json_lines(read_text(path), path))
    text = read_text(path)
    head = text.split("\n", 1)[0]
    mark = ";" if ";" in head and "," not in head else ","
    try:
        return list(enumerate(csv.DictReader(io.StringIO(text, newline=None), delimiter=mark), 2))
    except csv.Error as error:
        raise FolderError(f"{path}: not a table with commas ({error}); save it again") from error


def _check_complete(folder, files, rows, found):
    named = {os.path.normpath(row.path) for row in rows}
    left = [file for file in files if os.path.normpath(folder / file) not in named]
    if left:
        found.notes.append(f"{len(left)} images without a line are left out: {_some(left)}")


# ---- Places ------------------------------------------------------------------------------------


def _read_places(folder: Path, files: list[str], found: Folder) -> list[FolderImage]:
    """Whose each image is, by the folder it lies in."""
    inside = defaultdict(list)  # by the first folder; "" for those that lie loose
    for file in files:
        first, _, rest = file.partition("/")
        inside[first if rest else ""].append(file)
    places = {name for name in inside if name}
    classes = {name for name in places if name.lower() in CLASS}
    instances = {name for name in places if name.lower() in INSTANCE}
    if classes and (instances or places - classes or inside[""]):
        count = sum(len(inside[name]) for name in classes)
        found.notes.append(
            f"{count} class images are left out: they show other people; config.class_data reads "
            "their folder"
        )
        places -= classes
    nested = [file for name in sorted(places) for file in inside[name]]
    wraps = {name.lower() for name in places} <= set(CONTAINERS)
    if places and wraps and not inside[""] and all(file.count("/") > 1 for file in nested):
        return [
            row
            for name in sorted(places)
            for row in _read_places(
                folder / name, [file.removeprefix(f"{name}/") for file in inside[name]], found
            )
        ]
    kohya = {name: match for name in places if (match := KOHYA.fullmatch(name))}
    if len({match[2] for match in kohya.values()}) < len(kohya):
        kohya = {}  # such as 1_01 and 2_01: numbers of people and pictures
    if not places:
        found.layout = "one person, as no image is in a subfolder"
        return [_image(folder, file, folder.resolve().name) for file in inside[""]]
    if inside[""]:
        loose = inside[""]
        found.notes.append(
            f"{len(loose)} images lie next to people's folders and are left out: {_some(loose)}; "
            "move each into a folder"
        )
    if kohya:
        repeats = sorted({match[1] for match in kohya.values()}, key=int)
        found.layout = "kohya's folders"
        found.notes.append(
            f"repeats ({', '.join(repeats)}) are read by the methods of one person; others draw "
            "all people alike"
        )
    elif instances:
        found.layout = "diffusers' instance and class folders"
    else:
        found.layout = "a folder for each person"
    rows = []
    for name in sorted(places):
        match = kohya.get(name)
        who, word = _person(folder, name, match, name in instances)
        times = int(match[1]) if match else 1
        rows += [replace(_image(folder, file, who, word), repeats=times) for file in inside[name]]
    return rows


def _person(folder: Path, name: str, match, instance: bool) -> tuple[str, str]:
    """(identity, class word) of a folder of images."""
    if instance:
        return folder.resolve().name, ""
    if match:
        words = match[2].split()
        word = words[-1].lower() if words and words[-1].lower() in CLASS_WORDS else ""
        return match[2], word
    return name, ""


def _image(folder: Path, file: str, identity: str, class_word: str = "") -> FolderImage:
    return FolderImage(str(folder / file), identity, class_word)


# ---- All layouts -------------------------------------------------------------------------------


def _with_captions(rows: list[FolderImage], found: Folder) -> list[FolderImage]:
    """Captions of files next to images, where nothing else gave one."""
    beside: dict[str, dict[str, Path]] = {}  # folder -> the name that a text file is for -> it
    for place in dict.fromkeys(os.path.dirname(row.path) for row in rows):
        notes = [p for p in sorted(Path(place).iterdir()) if p.suffix.lower() in CAPTION_FILES]
        beside[place] = {_same(p.with_suffix("").name): p for p in notes}
        kept = set(beside[place].values())
        found.notes += [
            f"{p.name} is not read beside {beside[place][_same(p.with_suffix('').name)].name}"
            for p in notes
            if p not in kept
        ]
    out, used, empty = [], set(), []
    for row in rows:
        path, texts = Path(row.path), beside[os.path.dirname(row.path)]
        # 1.txt or, as some tools write it, 1.jpg.txt
        file = texts.get(_same(path.with_suffix("").name)) or texts.get(_same(path.name))
        text = "" if file is None or row.caption else " ".join(read_text(file).split())
        if file is not None and not row.caption:
            used.add(file)
            empty += [] if text else [file.name]
            row = replace(row, caption=text)
        out.append(row)
    if len(used) > len(empty):
        found.notes.append(f"{len(used) - len(empty)} captions from text files")
    if empty:
        found.notes.append(
            f"{len(empty)} text files are empty, so captions are proposed: {_some(empty)}"
        )
    idle = [path.name for texts in beside.values() for path in texts.values() if path not in used]
    if idle:
        found.notes.append(f"{len(idle)} text files are no image's caption: {_some(idle)}")
    return out


def _same(name: str) -> str:
    """Names that systems take for one: letters' case and Unicode forms do not count."""
    return unicodedata.normalize("NFC", name).casefold()


def _one_spelling(rows: list[FolderImage], found: Folder) -> list[FolderImage]:
    """One person's name in one Unicode form, without outer blanks; others that look alike told."""
    spelled: dict[str, set[str]] = defaultdict(set)
    out = []
    for row in rows:
        name = plain_name(row.identity)
        spelled[name].add(row.identity)
        out.append(replace(row, identity=name))
    for name, forms in spelled.items():
        if len(forms) > 1:
            found.notes.append(f"{len(forms)} spellings of {name!r} count as one person")
    found.notes += look_alikes(spelled)
    return out


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
