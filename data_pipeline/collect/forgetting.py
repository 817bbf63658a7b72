"""Takes all that was measured and written of pictures out of a work folder."""

from collections import Counter
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from data_pipeline.collect.looking.store import EMBEDDINGS, HOW, LOOKS, MEASURED
from data_pipeline.collect.records import CAPTIONS
from data_pipeline.files import atomic_write
from data_pipeline.text_files import parse_json


def forget(work: Path, keys: Collection[str]) -> Counter[str]:
    """Removes the measurements, embeddings and captions of pictures; returns how many."""
    counts: Counter[str] = Counter()

    def theirs(entry: dict[str, Any]) -> bool:
        return entry.get("key", "") in keys

    counts[f"lines of {CAPTIONS}"] += without_lines(work / CAPTIONS, theirs)
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
