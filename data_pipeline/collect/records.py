"""What goes from stage to stage: a row that the user gives, a picture that was fetched, and what
was dropped.

The work folder of a collection holds

    pictures/ab/abcd….jpg    upright sRGB pictures without metadata, by the key's first two digits
    pictures.jsonl           a Picture per line, in the order of the rows
    dropped.jsonl            a Dropped per line: what a stage left out, and why
    state.jsonl              what became of each row (download/state.py)
    refused.txt              who is not collected (refused.py)
    measured/, captions.jsonl, held_out.json, merged.json    what the later stages found
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from data_pipeline.files import atomic_write
from data_pipeline.text_files import parse_json_lines, read_text

PICTURES, DROPPED, CAPTIONS = "pictures.jsonl", "dropped.jsonl", "captions.jsonl"
MERGED = "merged.json"  # names that the last run found to be one person, and their cosine
NO = frozenset(("", "0", "0.0", "no", "n", "none", "null", "false", "f", "unknown", "nan", "n/a"))


@dataclass(frozen=True, slots=True)
class Row:
    """A picture of a person, as a list names it; "" for what the list does not say.

    ``sha256`` is of the file's bytes, 64 hexadecimal digits; ``source`` the page it was found on;
    ``origin`` the collection it belongs to, by which people can be kept out of training.
    """

    identity: str
    url: str
    sha256: str = ""
    licence: str = ""
    consent: str = ""
    source: str = ""
    caption: str = ""
    origin: str = ""

    @property
    def key(self) -> str:
        """16 hexadecimal digits of the identity and the address."""
        text = f"{self.identity}\n{self.url}".encode("utf-8", "surrogatepass")
        return hashlib.sha256(text).hexdigest()[:16]

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, entry: dict[str, Any]) -> "Row":
        return cls(**entry)


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture in the work folder.

    Attributes:
        key: SHA-256 of the bytes that were fetched.
        path: relative to the work folder.
        width, height: pixels of the upright picture.
        bytes: size of the file at ``path``.
        fetched: when, in UTC: 2026-01-31T12:00:00Z.
        rotated: whether EXIF's orientation turned or mirrored it.
        row: the key of its row.
    """

    key: str
    identity: str
    url: str
    path: str
    width: int
    height: int
    bytes: int
    fetched: str
    rotated: bool
    licence: str
    consent: str
    source: str
    caption: str
    row: str
    origin: str = ""

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, entry: dict[str, Any]) -> "Picture":
        return cls(**entry)


@dataclass(frozen=True, slots=True)
class Dropped:
    """What a stage left out: ``value`` was measured, ``threshold`` is what it was held against.

    ``key`` is the picture's, or the row's where there is no picture.
    """

    stage: str
    key: str
    identity: str
    url: str
    reason: str
    value: Any = None
    threshold: Any = None

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, entry: dict[str, Any]) -> "Dropped":
        return cls(**entry)


def has_consent(text: str) -> bool:
    """Whether what a list says of consent is more than no, none or nothing."""
    return text.strip().casefold() not in NO


def origins(source: str, url: str, origin: str = "") -> list[str]:
    """What a picture's origin may be called, the best name first: its collection's, the host of the
    page it was found on (or what is said in an address's place), and its own host."""
    page = host_of(source) or ("" if "://" in source else source)
    return list(dict.fromkeys(filter(None, (origin, page, host_of(url)))))


def origin_of(source: str, url: str, origin: str = "") -> str:
    """The first of ``origins``."""
    return next(iter(origins(source, url, origin)), "not stated")


def host_of(url: str) -> str:
    """The host of an address, lower case; "" for what is none."""
    try:
        return (urlsplit(url).hostname or "").removeprefix("www.")
    except ValueError:
        return ""


def json_line(entry: dict[str, Any]) -> str:
    """One line of a .jsonl file, with its end."""
    return json.dumps(entry, ensure_ascii=False) + "\n"


def write_json_lines(path: str | Path, items: Iterable[Row | Picture | Dropped]) -> None:
    """Write a .jsonl file in one piece."""
    with atomic_write(path) as partial, open(partial, "w", encoding="utf-8", newline="\n") as file:
        file.writelines(json_line(item.to_json()) for item in items)


def read_pictures(work: str | Path) -> list[Picture]:
    """The pictures that the download wrote. FileNotFoundError if it has not run."""
    path = Path(work) / PICTURES
    return [Picture.from_json(entry) for _, entry in parse_json_lines(read_text(path), path)]


def replace_dropped(work: str | Path, stage: str, dropped: Iterable[Dropped]) -> None:
    """Write what a stage dropped into dropped.jsonl, in place of what it wrote there before.

    Its lines come first, since the stages after it begin with what it left.
    """
    path = Path(work) / DROPPED
    kept = []
    if path.exists():
        entries = (entry for _, entry in parse_json_lines(read_text(path), path))
        kept = [Dropped.from_json(entry) for entry in entries if entry["stage"] != stage]
    write_json_lines(path, [*dropped, *kept])
