"""Which column of a list is which field of a row, and what a row may hold."""

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

from data_pipeline.collect.records import Row, has_consent
from data_pipeline.records.names import plain_name

SHOWN = 20  # faults
LONGEST_NAME = 200  # bytes: folders are named after people
# Names of columns that lists in use have, without regard to case, blanks and underscores.
NAMES: dict[str, tuple[str, ...]] = {
    "identity": ("identity", "person", "name", "subject", "label", "celebrity"),
    "url": ("url", "link", "imageurl", "image", "uri", "href"),
    "sha256": ("sha256", "hash", "checksum"),
    "licence": ("licence", "license"),
    "consent": ("consent",),
    "source": ("source", "sourcepage", "page", "pageurl", "sourceurl"),
    "origin": ("origin", "dataset", "collection"),
    "caption": ("caption", "text", "alt", "alttext", "description"),
}
REQUIRED = ("identity", "url")
HASH = re.compile(r"[0-9a-f]{64}")
CONTROL = re.compile(r"[\x00-\x1f\x7f]")


class RowError(ValueError):
    """A list that cannot be used; the message names the file, the lines and the remedy."""


def find_columns(
    names: Iterable[str],
    where: str,
    given: Mapping[str, str] | None = None,
    required: Iterable[str] = REQUIRED,
) -> tuple[dict[str, str], list[str]]:
    """({field: column}, the columns that are not read).

    Args:
        names: of the columns there are. where: the list's name, for messages.
        given: {field: column} where a list uses other names.

    Raises:
        RowError: a required column is missing.
    """
    names, given = list(names), dict(given or {})
    known = [field.name for field in fields(Row)]
    for field, column in given.items():
        if field not in known:
            raise RowError(f"column {field!r}: no field of a row; they are {', '.join(known)}")
        if column not in names:
            raise RowError(f"{where}: no column {column!r}; it has {_listed(names)}")
    plain = {re.sub(r"[\s_-]", "", name).lower(): name for name in reversed(names)}
    found = dict(given)
    for field, spellings in NAMES.items():
        taken = found.values()
        match = next((plain[s] for s in spellings if s in plain and plain[s] not in taken), None)
        if field not in found and match is not None:
            found[field] = match
    for field in required:
        if field not in found:
            raise RowError(
                f"{where}: no column {field}; it has {_listed(names)}: rename one, or say which "
                f"it is by {field}=COLUMN"
            )
    return found, [name for name in names if name not in found.values()]


def make_row(entry: Mapping[str, Any], columns: Mapping[str, str]) -> Row:
    """The row of a line. ValueError with the end of a sentence if it cannot be one."""
    values = {field: _text(field, entry.get(column)) for field, column in columns.items()}
    return checked_row(values)


def checked_row(values: dict[str, str]) -> Row:
    """A row of texts; the same."""
    values = {field: value.strip() for field, value in values.items()}
    values["identity"] = checked_identity(values.get("identity", ""))
    if not values.get("url"):
        raise ValueError("the url is empty")
    if CONTROL.search(values["url"]):
        raise ValueError("the url holds control characters")
    values["sha256"] = values.get("sha256", "").lower().removeprefix("sha256:")
    if not has_consent(values.get("consent", "")):
        values["consent"] = ""  # "no" is not a consent of that name
    if values["sha256"] and not HASH.fullmatch(values["sha256"]):
        raise ValueError(f"sha256 {values['sha256'][:80]!r} is not 64 hexadecimal digits")
    return Row(**values)


def checked_identity(name: str) -> str:
    """The name in one spelling. ValueError if it is empty or could be a path."""
    name = plain_name(name)
    if not name:
        raise ValueError("the identity is empty")
    if CONTROL.search(name):
        raise ValueError(f"the identity {name!r} holds control characters")
    if "/" in name or "\\" in name or name in (os.curdir, os.pardir):
        raise ValueError(f"the identity {name!r} has parts of a path (/, \\ or ..)")
    if len(name.encode()) > LONGEST_NAME:
        raise ValueError(f"the identity {name[:40]!r}… has more than {LONGEST_NAME} bytes")
    return name


def raise_faults(where: str, faults: list[str]) -> None:
    """A RowError that counts the faults and shows the first of them; none: nothing."""
    if faults:
        shown = "\n  ".join(faults[:SHOWN])
        more = f"\n  ... and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
        rows = "1 row" if len(faults) == 1 else f"{len(faults)} rows"
        raise RowError(f"{where}: {rows} cannot be used; correct the list\n  {shown}{more}")


def _text(field: str, value: Any) -> str:
    if value is None or (isinstance(value, float) and value != value):  # Parquet's missing number
        return ""
    if isinstance(value, bool):
        return "yes" if value else ""
    if isinstance(value, str | int | float):
        text = str(value)
        try:
            text.encode()
        except UnicodeEncodeError:
            raise ValueError(f"{field} {text!r} is not text that UTF-8 can hold") from None
        return text
    raise ValueError(f"{field} is {type(value).__name__}; give a text")


def _listed(names: list[str]) -> str:
    return ", ".join(map(repr, names[:SHOWN])) + (", …" if len(names) > SHOWN else "") or "none"
