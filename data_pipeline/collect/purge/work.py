"""People out of a work folder: pictures, measurements, embeddings, captions, lists."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data_pipeline.collect.looking.store import EMBEDDINGS, HOW, LOOKS, MEASURED, decoded, lines_of
from data_pipeline.collect.purge.wanted import Wanted
from data_pipeline.collect.records import DROPPED, PICTURES, Picture, read_pictures
from data_pipeline.collect.running.finish import CAPTIONS
from data_pipeline.files import atomic_write
from data_pipeline.text_files import parse_json, read_json


def find_in_work(work: Path, who: Wanted) -> list[Picture]:
    """The pictures that go; adds what their faces say to ``who``."""
    pictures = read_pictures(work) if (work / PICTURES).is_file() else []
    whose = {picture.key: picture.identity for picture in pictures}
    if who.refused.faces:
        for folder in stores(work):
            recogniser = read_json(folder / HOW)["recogniser"]
            rows = {entry["key"]: decoded(entry) for entry in lines_of(folder, EMBEDDINGS)}
            who.find_faces(rows, whose, recogniser)
    return [p for p in pictures if who.is_theirs(p.identity, p.url, p.key)]


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
        return entry.get("key", "") in keys or who.is_theirs(identity, url, entry.get("key", ""))

    for name in (PICTURES, DROPPED, CAPTIONS):
        counts[f"lines of {name}"] += without_lines(work / name, theirs)
    for folder in stores(work):
        for kind in (LOOKS, EMBEDDINGS):
            for path in sorted(folder.glob(f"{kind}*.jsonl")):
                counts[kind] += without_lines(path, theirs)
    return counts


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
