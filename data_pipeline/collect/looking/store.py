"""Measurements by the picture's key: ``measured/<how>/looks.jsonl`` and ``embeddings.jsonl``.

Both files only grow, so that a run that was killed loses the line it was writing. Embeddings are
apart, because they are biometric data, which can be deleted without the rest. ``<how>`` is a digest
of how pictures were measured: other settings measure into a folder of their own.
"""

import base64
import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from data_pipeline.collect.looking.looks import Look
from data_pipeline.collect.settings import Measure
from data_pipeline.text_files import parse_json

MEASURED, LOOKS, EMBEDDINGS, HOW = "measured", "looks", "embeddings", "how.json"
VERSION = 1  # of what is measured


class Store:
    """The measurements of a work folder. ``add`` writes at once; use it in a ``with`` block."""

    def __init__(self, work: str | Path, settings: Measure):
        how = {"version": VERSION, **dataclasses.asdict(settings)}
        text = json.dumps(how, sort_keys=True)
        self.folder = Path(work) / MEASURED / hashlib.sha256(text.encode()).hexdigest()[:12]
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / HOW).write_text(text + "\n", encoding="utf-8")
        self._files: dict[str, IO[str]] = {}

    def known(self) -> dict[str, tuple[Look, np.ndarray]]:
        """By key; a look whose embeddings are missing is left out, so it is measured again."""
        embeddings = {e["key"]: decoded(e) for e in lines_of(self.folder, EMBEDDINGS)}
        found = {}
        for entry in lines_of(self.folder, LOOKS):
            rows = embeddings.get(entry["key"])
            if rows is not None and len(rows) == len(entry["faces"]):
                found[entry["key"]] = Look.from_json(entry), rows
        return found

    def add(self, look: Look, embeddings: np.ndarray) -> None:
        self._write(EMBEDDINGS, encoded(look.key, embeddings))
        self._write(LOOKS, look.to_json())

    def _write(self, name: str, entry: dict[str, Any]) -> None:
        if name not in self._files:
            path = self.folder / f"{name}.jsonl"
            cut_torn_line(path)
            self._files[name] = path.open("a", encoding="utf-8")
        self._files[name].write(json.dumps(entry) + "\n")
        self._files[name].flush()

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files.values():
            file.close()
        self._files.clear()


def lines_of(folder: Path, name: str) -> Iterator[dict[str, Any]]:
    """The entries of all files called ``<name>*.jsonl``: Beam's workers write several."""
    for path in sorted(folder.glob(f"{name}*.jsonl")):
        yield from lines_of_file(path)


def lines_of_file(path: Path) -> Iterator[dict[str, Any]]:
    """The entries of a file, without what a killed process left at its end."""
    with path.open(encoding="utf-8") as file:  # line by line: there are millions
        for number, line in enumerate(file, 1):
            if line.endswith("\n"):
                yield parse_json(line, path, number)


def encoded(key: str, embeddings: np.ndarray) -> dict[str, Any]:
    """Embeddings [n, d] as JSON, to the bit."""
    rows = np.ascontiguousarray(embeddings, "<f4")
    return {
        "key": key,
        "shape": list(rows.shape),
        "faces": base64.b64encode(rows.tobytes()).decode(),
    }


def decoded(entry: dict[str, Any]) -> np.ndarray:
    """The inverse of ``encoded``."""
    raw = base64.b64decode(entry["faces"])
    return np.frombuffer(raw, "<f4").reshape(entry["shape"]).astype(np.float32)


def cut_torn_line(path: Path) -> None:
    """Removes the end of a file after its last line end, which a killed process left."""
    if not path.is_file():
        return
    raw = path.read_bytes()
    if raw and not raw.endswith(b"\n"):
        os.truncate(path, raw.rfind(b"\n") + 1)
