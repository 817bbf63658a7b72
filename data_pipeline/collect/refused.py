"""Who asked not to be in, which every run obeys, the download's and the later stages':
``refused.txt`` and ``refused_faces.jsonl`` of a work folder.

The text has a name as the rows have it (without regard to case), an address (with ``://``, or
``file:`` at its beginning) or the SHA-256 of a fetched file per line; lines that begin with # are
comments. The other holds {"embedding": […], "least": cosine, "recogniser": …} per line: a refused
face is kept as an embedding, since only that recognises it in pictures that are collected later;
who does not want that refuses by name, address and hash.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.collect.choices import Choice, Drop
from data_pipeline.files import write_text
from data_pipeline.records.names import plain_name
from data_pipeline.text_files import TextError, parse_json_lines, read_lines, read_text

FILE, FACES, STAGE = "refused.txt", "refused_faces.jsonl", "refused"
REASON = "refused by "  # name, address, hash or picture: a reason in dropped.jsonl
HASH = re.compile(r"[0-9a-fA-F]{64}")


@dataclass
class Refusals:
    """Names (in plain_name's form, case folded), addresses, keys; faces: embedding, cosine, by."""

    names: set[str] = field(default_factory=set)
    urls: set[str] = field(default_factory=set)
    keys: set[str] = field(default_factory=set)
    faces: list[tuple[np.ndarray, float, str]] = field(default_factory=list)

    def of_picture(self, identity: str, url: str, *keys: str) -> str:
        """Why a picture is refused, by what is known without looking at it; "" if it is not.

        Args:
            keys: SHA-256 hashes of its file, as fetched or as the list states it.
        """
        if folded(identity) in self.names:
            return REASON + "name"
        if url.strip() in self.urls:
            return REASON + "address"
        return REASON + "hash" if self.keys.intersection(keys) else ""

    def of_faces(self, embeddings: np.ndarray, recogniser: str) -> tuple[float, float] | None:
        """(cosine, threshold) of the first refused face that is among [n, d]; None if none is."""
        for face, least, by in self.faces:
            if by != recogniser or not len(embeddings) or embeddings.shape[1] != len(face):
                continue
            best = float((embeddings @ face).max())
            if best >= least:
                return round(best, 4), least
        return None

    def of_others(self, recogniser: str) -> str:
        """A warning if there are faces that this recogniser cannot find; "" if there are none."""
        others = sorted({by for _, _, by in self.faces if by != recogniser})
        if not others:
            return ""
        return (
            f"{FACES}: refused faces of {', '.join(others)} are not found by {recogniser}; run "
            f"purge with their pictures and --recogniser {recogniser}"
        )

    def applied(
        self, choices: Sequence[Choice], recogniser: str = ""
    ) -> tuple[list[Choice], list[Drop]]:
        """The pictures that nobody refused, and the others."""
        kept, drops = [], []
        for choice in choices:
            picture = choice.picture
            why = self.of_picture(picture.identity, picture.url, picture.key)
            face = None if why else self.of_faces(choice.embeddings, recogniser)
            if why:
                drops.append(choice.drop(STAGE, why))
            elif face:
                drops.append(choice.drop(STAGE, REASON + "picture", *face))
            else:
                kept.append(choice)
        return kept, drops


def read_refused(work: str | Path, *lists: str | Path) -> Refusals:
    """The lists of a work folder, empty if there are none, and further ones like refused.txt.

    Raises:
        TextError: a line of another form. OSError: one of ``lists`` cannot be read.
    """
    found, path = Refusals(), Path(work) / FILE
    for file in [*([path] if path.is_file() else []), *lists]:
        for line in read_lines(file):
            entry = line.strip()
            if not entry or entry.startswith("#"):
                continue
            if HASH.fullmatch(entry):
                found.keys.add(entry.lower())
            elif is_address(entry):
                found.urls.add(entry)
            else:
                found.names.add(folded(entry))
    path = Path(work) / FACES
    for number, entry in parse_json_lines(read_text(path), path) if path.is_file() else ():
        try:
            face = np.asarray(entry["embedding"], np.float32)
            found.faces.append((face, float(entry["least"]), str(entry["recogniser"])))
        except (KeyError, TypeError, ValueError) as error:
            raise TextError(f"{path} line {number}: no refused face ({error!r})") from None
    return found


def append(work: str | Path, texts: Sequence[str], faces: Sequence[dict[str, Any]] = ()) -> None:
    """Adds lines to the lists of a work folder, each once."""
    new = {FILE: list(texts), FACES: [json.dumps(face) for face in faces]}
    for name, lines in new.items():
        path = Path(work) / name
        old = read_lines(path) if path.is_file() else []
        lines = [line for line in dict.fromkeys(lines) if line not in old]
        if lines:
            write_text(path, "".join(line + "\n" for line in [*old, *lines]))


def is_address(text: str) -> bool:
    return "://" in text or text.startswith("file:")


def folded(name: str) -> str:
    return plain_name(name).casefold()
