"""The list of people, addresses and files that are not collected.

A text file, one entry a line: an address (with ``://``, or ``file:`` at its beginning), a SHA-256
of a file's bytes (64 hexadecimal digits), or else a person's name as the rows have it, without
regard to case. Lines that begin with # are comments.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path

from data_pipeline.collect.records import Row
from data_pipeline.records.names import plain_name
from data_pipeline.text_files import read_lines

HASH = re.compile(r"[0-9a-fA-F]{64}")


@dataclass(frozen=True)
class Refusals:
    """What the list holds."""

    identities: frozenset[str] = field(default_factory=frozenset)
    urls: frozenset[str] = field(default_factory=frozenset)
    hashes: frozenset[str] = field(default_factory=frozenset)

    def refused(self, row: Row, key: str = "") -> str:
        """Which of a row's fields is on the list, "" for none.

        Args:
            key: the SHA-256 of the fetched bytes, where they are known.
        """
        if plain_name(row.identity).casefold() in self.identities:
            return "identity"
        if row.url.strip() in self.urls:
            return "url"
        if {key, row.sha256} & self.hashes:
            return "sha256"
        return ""


def read_refusals(path: str | Path) -> Refusals:
    """The list of a file, "" for an empty one. TextError or OSError if it cannot be read."""
    identities, urls, hashes = set(), set(), set()
    for line in read_lines(path) if path else []:
        entry = line.strip()
        if not entry or entry.startswith("#"):
            continue
        if HASH.fullmatch(entry):
            hashes.add(entry.lower())
        elif "://" in entry or entry.startswith("file:"):
            urls.add(entry)
        else:
            identities.add(plain_name(entry).casefold())
    return Refusals(frozenset(identities), frozenset(urls), frozenset(hashes))
