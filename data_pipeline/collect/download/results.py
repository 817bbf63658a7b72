"""What a download leaves: pictures.jsonl, dropped.jsonl and download.json, in the rows' order."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from data_pipeline.collect.forgetting import forget
from data_pipeline.collect.records import (
    DROPPED,
    PICTURES,
    Dropped,
    Picture,
    Row,
    replace_dropped,
    write_json_lines,
)
from data_pipeline.files import write_text

STAGE = "download"
SUMMARY = "download.json"

Entries = Mapping[str, dict[str, Any]]


def write_results(work: Path, rows: list[Row], entries: Entries) -> list[Picture]:
    """Write the three files from the rows' states, and return the pictures."""
    pictures, dropped = [], []
    for row in rows:
        entry = entries[row.key]
        if entry["state"] == "done":
            pictures.append(_picture(row, entry))
        else:
            why = (entry["reason"], entry["value"], entry["threshold"])
            dropped.append(Dropped(STAGE, row.key, row.identity, row.url, *why))
    write_json_lines(work / PICTURES, pictures)
    replace_dropped(work, STAGE, dropped)
    write_text(work / SUMMARY, json.dumps(summary(rows, entries), indent=1) + "\n")
    return pictures


def summary(rows: list[Row], entries: Entries) -> dict[str, Any]:
    """Counts of states and reasons, bytes of the pictures; in all, and of each host."""
    total, hosts = _counts(), {}
    for row in rows:
        entry = entries[row.key]
        for counts in (total, hosts.setdefault(_host(row), _counts())):
            counts["states"][entry["state"]] += 1
            if entry["state"] == "done":
                counts["bytes"] += entry["picture"]["bytes"]
            else:
                counts["reasons"][entry["reason"]] += 1
    return {"rows": len(rows), **total, "hosts": dict(sorted(hosts.items()))}


def lines(counted: Mapping[str, Any]) -> list[str]:
    """The summary as lines to read: what came, then the reasons, the most frequent first."""
    states = counted["states"]
    out = [
        f"{states['done']} of {counted['rows']} rows have a picture "
        f"({counted['bytes'] / 1e6:.1f} MB), {states['failed']} failed, "
        f"{states['refused']} were refused"
    ]
    reasons = Counter(counted["reasons"]).most_common()
    out += [f"  {reason}: {count}" for reason, count in reasons]
    return out


def is_there(work: Path, picture: Mapping[str, Any]) -> bool:
    """Whether a picture's file is still as long as it was written."""
    try:
        return (work / picture["path"]).stat().st_size == picture["bytes"]
    except FileNotFoundError:
        return False


def withdraw(work: Path, pictures: Iterable[Mapping[str, Any]], entries: Entries) -> None:
    """Delete the files of pictures and all that was measured of them, but for those that another
    row also has."""
    kept = {entry["picture"]["path"] for entry in entries.values() if entry["state"] == "done"}
    gone = [picture for picture in pictures if picture["path"] not in kept]
    for picture in gone:
        (work / picture["path"]).unlink(missing_ok=True)
    if gone:
        forget(work, {picture["key"] for picture in gone})


def remove_partial(work: Path) -> None:
    """Remove what a killed run left of the three files."""
    for name in (PICTURES, DROPPED, SUMMARY):
        for partial in work.glob(f".{name}.*.part"):
            partial.unlink()


def _counts() -> dict[str, Any]:
    return {"states": Counter(done=0, failed=0, refused=0), "bytes": 0, "reasons": Counter()}


def _host(row: Row) -> str:
    try:
        return urlsplit(row.url).hostname or "here"
    except ValueError:
        return "no address"


def _picture(row: Row, entry: Mapping[str, Any]) -> Picture:
    return Picture(
        **entry["picture"],
        identity=row.identity,
        url=row.url,
        fetched=entry["time"],
        licence=row.licence,
        consent=row.consent,
        source=row.source,
        caption=row.caption,
        row=row.key,
        origin=row.origin,
    )
