"""People out of a work folder: pictures, measurements, embeddings, captions, lists."""

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from data_pipeline.collect.looking.store import EMBEDDINGS, HOW, LOOKS, MEASURED, decoded, lines_of
from data_pipeline.collect.purge.wanted import Wanted
from data_pipeline.collect.records import DROPPED, PICTURES, Picture, read_pictures
from data_pipeline.collect.running.finish import CAPTIONS
from data_pipeline.files import atomic_write
from data_pipeline.text_files import parse_json, parse_json_lines, read_json, read_text


def find_in_work(work: Path, who: Wanted) -> tuple[list[Picture], list[str]]:
    """The pictures that go, and the keys of those that go as copies of others; adds to ``who`` what
    their faces say."""
    pictures = read_pictures(work) if (work / PICTURES).is_file() else []
    whose = {picture.key: picture.identity for picture in pictures}
    if who.refused.faces:
        for folder in stores(work):
            recogniser = read_json(folder / HOW)["recogniser"]
            rows = {entry["key"]: decoded(entry) for entry in lines_of(folder, EMBEDDINGS)}
            who.find_faces(rows, whose, recogniser)
    gone = [p for p in pictures if who.is_theirs(p.identity, p.url, p.key)]
    # What was dropped as a copy is the same photograph.
    of = dict(_copies(work / DROPPED))
    keys = found = {p.key for p in gone}
    while more := {key for key, first in of.items() if first in keys} - keys:
        keys = keys | more
    who.keys |= keys
    return [p for p in pictures if p.key in keys], sorted(keys - found)


def purge_work(work: Path, who: Wanted, gone: list[Picture]) -> Counter[str]:
    """Removes them from every file of the folder; returns what was removed."""
    counts: Counter[str] = Counter()
    # The bytes of a picture of theirs are theirs under every name.
    keys = {picture.key for picture in gone} | who.keys | who.refused.keys
    for picture in gone:
        path = work / picture.path
        if path.is_file():
            path.unlink()
            counts["pictures"] += 1

    def theirs(entry: dict[str, Any]) -> bool:
        identity, url = entry.get("identity", ""), entry.get("url", "")
        if is_copy_of(entry, who):
            return True
        return entry.get("key", "") in keys or who.is_theirs(identity, url, entry.get("key", ""))

    for name in (PICTURES, DROPPED, CAPTIONS):
        counts[f"lines of {name}"] += without_lines(work / name, theirs)
    for folder in stores(work):
        for kind in (LOOKS, EMBEDDINGS):
            for path in sorted(folder.glob(f"{kind}*.jsonl")):
                counts[kind] += without_lines(path, theirs)
    return counts


def is_copy_of(entry: dict[str, Any], who: Wanted) -> bool:
    """Whether a line of dropped.jsonl says that a picture is a copy of one of theirs."""
    value = entry.get("value")
    return isinstance(value, dict) and value.get("of") in who.keys | who.refused.keys


def _copies(path: Path) -> Iterator[tuple[str, str]]:
    """(key, key of the picture that it is a copy of) of the lines of dropped.jsonl."""
    for _, entry in parse_json_lines(read_text(path), path) if path.is_file() else ():
        if isinstance(entry["value"], dict) and "of" in entry["value"]:
            yield entry["key"], entry["value"]["of"]


def stores(work: Path) -> list[Path]:
    """The folders of measurements."""
    return [path.parent for path in sorted((work / MEASURED).glob(f"*/{HOW}"))]


def without_lines(path: Path, theirs: Callable[[dict[str, Any]], bool]) -> int:
    """Rewrites a file of JSON lines without some; returns how many there were."""
    if not path.is_file():
        return 0
    gone = 0
    with atomic_write(path) as partial:
        with path.open(encoding="utf-8") as old, partial.open("w", encoding="utf-8") as new:
            for number, line in enumerate(old, 1):
                if not line.endswith("\n"):  # a killed process left it
                    continue
                if theirs(parse_json(line, path, number)):
                    gone += 1
                else:
                    new.write(line)
    return gone
