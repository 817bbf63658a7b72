"""What is known of pictures before anything goes, and what follows from it."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_pipeline.collect.output.contents import collected
from data_pipeline.collect.purge.wanted import Wanted
from data_pipeline.collect.refused import folded
from data_pipeline.text_files import parse_json_lines, read_text


@dataclass
class Facts:
    """Of all work folders and data together.

    Attributes:
        pictures: (key, name, address, earlier name), "" for what is not known.
        merged: names that were found to be one person. copies: keys of one photograph.
    """

    pictures: list[tuple[str, str, str, str]] = field(default_factory=list)
    merged: list[tuple[str, str]] = field(default_factory=list)
    copies: list[tuple[str, str]] = field(default_factory=list)

    def add_entries(self, entries: Iterable[dict[str, Any]]) -> None:
        """Entries of a manifest, of an index or of tars."""
        for entry in entries:
            known, name = collected(entry), entry.get("identity", "")
            also = known.get("also_called", "")
            self.pictures.append((known.get("sha256", ""), name, known.get("url", ""), also))
            if also:
                self.merged.append((name, also))

    def add_dropped(self, path: Path) -> None:
        """The lines of a dropped.jsonl, if there is one."""
        for _, entry in parse_json_lines(read_text(path), path) if path.is_file() else ():
            self.pictures.append((entry["key"], entry["identity"], entry["url"], ""))
            if of := copy_of(entry):
                self.copies.append((entry["key"], of))

    def spread(self, who: Wanted) -> None:
        """Adds the other names of a person, the keys of all pictures that go, and their copies,
        the kept one of a dropped one as well as the other way round."""
        who.keys |= who.refused.keys
        before = -1
        while before != len(who.names) + len(who.keys):
            before = len(who.names) + len(who.keys)
            for one, other in self.merged:
                if who.is_name(one) or who.is_name(other):
                    who.names |= {folded(one), folded(other)}
            for key, name, url, also in self.pictures:
                if key and who.is_theirs(name, url, key, also):
                    who.keys.add(key)
            for one, other in self.copies:
                if one in who.keys or other in who.keys:
                    who.keys |= {one, other}


def copy_of(entry: dict[str, Any]) -> str:
    """The key of the picture in whose place a line of dropped.jsonl stands; "" for none."""
    value = entry.get("value")
    return value.get("of", "") if isinstance(value, dict) else ""


def is_theirs(entry: dict[str, Any], who: Wanted) -> bool:
    """Whether a line of the collection's own lists goes."""
    if copy_of(entry) in who.keys:
        return True
    return who.is_theirs(entry.get("identity", ""), entry.get("url", ""), entry.get("key", ""))
