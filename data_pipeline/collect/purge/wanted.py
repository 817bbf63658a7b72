"""Who is to go, and whether a picture is theirs."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.collect.looking.measure import Measurer
from data_pipeline.collect.refused import HASH, Refusals, folded, is_address
from data_pipeline.collect.settings import Measure
from data_pipeline.collect.verify import median_direction


class PurgeError(ValueError):
    """A wish that cannot be carried out; the message names it and the remedy."""


@dataclass
class Wanted:
    """What goes.

    Attributes:
        refused: names, addresses, hashes and faces as they were given.
        keys, names: what was found to be theirs, too, by the faces.
            Pictures without a known hash have a key of their own: their file, or "tar#number".
        looked: keys of pictures whose faces were compared.
    """

    refused: Refusals
    keys: set[str] = field(default_factory=set)
    names: set[str] = field(default_factory=set)
    looked: set[str] = field(default_factory=set)

    def is_theirs(self, identity: str, url: str, key: str, also: str = "") -> bool:
        """Whether a picture goes, by its name (or an earlier one), address or hash."""
        if any(self.is_name(name) for name in (identity, also) if name):
            return True
        return key in self.keys or bool(self.refused.of_picture(identity, url, key))

    def is_name(self, name: str) -> bool:
        return folded(name) in self.names or folded(name) in self.refused.names

    def find_faces(
        self, embeddings: Mapping[str, np.ndarray], whose: Mapping[str, str], recogniser: str
    ) -> None:
        """Add the pictures with a refused face, and the names whose median face is one.

        Args:
            embeddings: key -> [n, d] of its faces. whose: key -> name.
        """
        of_name = defaultdict(list)
        self.looked |= embeddings.keys()
        for key, rows in embeddings.items():
            if len(rows) and self.refused.of_faces(rows, recogniser):
                self.keys.add(key)
            if len(rows) == 1 and key in whose:  # with several nobody knows whose is whose
                of_name[whose[key]].append(rows[0])
        for name, found in of_name.items():
            centre = median_direction(np.stack(found))
            if self.refused.of_faces(centre[None], recogniser):
                self.names.add(folded(name))


def wanted(
    names: Iterable[str],
    urls: Iterable[str],
    hashes: Iterable[str],
    pictures: Sequence[str],
    least: float,
    measure: Measure,
) -> tuple[Wanted, list[str], list[dict[str, Any]]]:
    """What is to go; and the lines for refused.txt and refused_faces.jsonl.

    Args:
        pictures: files that show one face each. least: cosine from which a face is theirs.

    Raises:
        PurgeError: nothing given, no hash, or a picture without exactly one face.
    """
    names, urls = list(names), list(urls)
    for key in (hashes := [key.lower() for key in hashes]):
        if not HASH.fullmatch(key):
            raise PurgeError(f"--sha256 {key}: 64 hexadecimal digits are needed")
    for url in urls:
        if not is_address(url):
            raise PurgeError(f"--url {url}: not an address")
    found = Refusals({folded(name) for name in names}, set(urls), set(hashes))
    faces: list[dict[str, Any]] = []
    looks = Measurer(measure)([(file, file) for file in pictures]) if pictures else []
    for file, (look, rows) in zip(pictures, looks, strict=True):
        if look.fault or len(rows) != 1:
            what = look.fault or f"{len(rows)} faces found"
            raise PurgeError(f"--picture {file}: {what}; give one that shows this person alone")
        found.faces.append((rows[0], least, measure.recogniser))
        plain = [round(float(value), 6) for value in rows[0]]
        faces.append({"embedding": plain, "least": least, "recogniser": measure.recogniser})
    texts = [*(" ".join(name.split()) for name in names), *urls, *hashes]
    if not texts and not faces:
        raise PurgeError("nobody is named: give --name, --url, --sha256 or --picture")
    return Wanted(found), texts, faces


def embeddings_of_files(files: Mapping[str, Path], measure: Measure) -> dict[str, np.ndarray]:
    """Embeddings of pictures whose measurements are not stored: key -> [n, d]."""
    looks = Measurer(measure)([(key, str(path)) for key, path in files.items()])
    return {look.key: rows for look, rows in looks}
