"""What judging networks compute from images, stored under the content of the image.

    kept = KeptFeatures(folder, "CLIP at 224 pixels", weights)
    rows = kept(images, lambda some: {"features": clip.image_features(some)})

A row's key is a digest of the image's pixels, a folder's name a digest of the weights and of how
images are prepared: another image, size or network has other rows, and the same image under another
name has the same ones.
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from persongen_jax.features.store import FeatureTable, digest_of, stored_spec
from persongen_jax.files import warn_if_full

VERSION = 1  # of what rows hold; part of every key
AT_ONCE = 64  # images that are in memory together

Rows = dict[str, np.ndarray]
"""Arrays by name, [n, ...] each: a row per image."""


class KeptFeatures:
    """Rows of one network.

    Args:
        folder: of all networks' rows; this one's has its own subfolder.
        about: the network and how images are prepared for it, in words; part of the key.
        depends_on: pytrees of everything else that a row depends on: arrays, texts, bytes.

    Attributes:
        computed, found: how many rows were computed, and how many were there already.
    """

    def __init__(self, folder: str | Path, about: str, *depends_on: Any):
        leaves = (np.asarray(x) if hasattr(x, "shape") else x for x in jax.tree.leaves(depends_on))
        digest = digest_of(VERSION, about, *leaves).hex()
        self.about, self._folder = about, Path(folder) / digest
        self._table: FeatureTable | None = None
        self.computed = self.found = 0
        if spec := stored_spec(self._folder):
            self._table = FeatureTable(self._folder, spec)

    def __call__(
        self, images: Sequence[np.ndarray] | np.ndarray, compute: Callable[[list], Rows]
    ) -> Rows:
        """The images' rows, in their order.

        Args:
            images: uint8 RGB [h, w, 3] each, at least one. A sequence may have ``digests``, of the
                pixels by ``digest_of``, and ``names`` for messages.
            compute: rows of some of them.

        Raises:
            ValueError: a row that is not finite; nothing of it is stored.
        """
        keys = getattr(images, "digests", None) or [digest_of(np.asarray(i)) for i in images]
        rows: dict[bytes, Rows] = {}
        missing: dict[bytes, int] = {}
        for i, key in enumerate(keys):
            row = None if self._table is None else self._table.get(key)
            if row is None:
                missing.setdefault(key, i)
            else:
                rows[key] = row
        self.found += len(rows)
        todo = list(missing.items())
        for start in range(0, len(todo), AT_ONCE):
            rows |= self._compute(images, todo[start : start + AT_ONCE], compute)
        return {name: np.stack([rows[key][name] for key in keys]) for name in rows[keys[0]]}

    def _compute(self, images, todo, compute) -> dict[bytes, Rows]:
        arrays = {name: np.asarray(a) for name, a in compute([images[i] for _, i in todo]).items()}
        for name, array in arrays.items():
            bad = [i for row, (_, i) in zip(array, todo, strict=True) if not np.isfinite(row).all()]
            if bad:
                names = getattr(images, "names", None)
                first = names[bad[0]] if names else f"image {bad[0] + 1}"
                raise ValueError(
                    f"{first}: its {name} by {self.about} are not finite, as those of {len(bad)} "
                    f"of {len(todo)} images: the weights are damaged, fetch them again; or, if it "
                    "is a single image, leave it out"
                )
        if self._table is None:
            spec = {name: (array.shape[1:], array.dtype) for name, array in arrays.items()}
            self._table = FeatureTable(self._folder, spec)
        rows = {}
        for n, (key, _) in enumerate(todo):
            rows[key] = {name: array[n] for name, array in arrays.items()}
            self._table.put(key, rows[key])
        with warn_if_full(self._folder):
            self._table.flush()
        self.computed += len(rows)
        return rows


def text_of(settings: Mapping[str, Any]) -> str:
    """A network's config as a text that is equal for equal configs."""
    return json.dumps(dict(settings), sort_keys=True, default=str)


def digest_of_files(path: str | os.PathLike) -> bytes:
    """A digest of a file's content, or of all files in a folder; b"" if there is nothing."""
    path = Path(path)
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return b"".join(digest_of(file.read_bytes()) for file in files if file.is_file())
