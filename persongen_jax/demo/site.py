"""What all tabs share: the models, the judges, where images go, who is visiting."""

import secrets
import shutil
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from persongen_jax.demo.judging import Judges
from persongen_jax.demo.line import Line
from persongen_jax.demo.offers import Models
from persongen_jax.demo.painting import Made, Request, messages, paint, save
from persongen_jax.demo.sessions import Sessions
from persongen_jax.pipeline.saving import ImageFolder

# Of events: those that compute with a model, and those that are not a part of the HTTP API.
IN_LINE: dict[str, Any] = {"concurrency_limit": None}  # ``Site.line`` has the order
PRIVATE: dict[str, Any] = {"api_visibility": "private"}


@dataclass
class Site:
    """The page's possessions.

    Attributes:
        folder: where generated images are written.
        roots: folders in which runs and studies are looked for.
        checker: which images are not shown, see painting.py.
        examples: files of references to try.
        steps: the usual number of sampling steps.
        waiting: requests that may wait while one is computed; further ones are refused.
        guidance: the usual one.
    """

    models: Models
    judges: Judges
    folder: ImageFolder
    sessions: Sessions
    roots: tuple[Path, ...] = ()
    pose_net: str = ""
    checker: Callable[[list], np.ndarray] | None = None
    examples: tuple[str, ...] = ()
    steps: int = 30
    waiting: int = 8
    guidance: float = 5.0

    def __post_init__(self):
        self._lock, self.line = threading.Lock(), Line(self.waiting)

    def paint(self, name: str, asked: Request, **told: Callable) -> tuple[list[Made], list[str]]:
        """painting.paint with the model of this name; ``told``: its progress and on_preview."""
        return paint(
            self.models,
            self.models.named(name),
            asked,
            judges=self.judges,
            pose_net=self.pose_net,
            checker=self.checker,
            **told,
        )

    def save(self, made: list[Made], visitor: Any) -> tuple[list[str], list[str]]:
        """Copies of the images' files for a visitor; and what there is to say about them.

        The files are numbered on, so whoever could ask for one could ask for everybody's; the
        copies' names cannot be guessed, and they leave with their visitor.
        """
        with self._lock, warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            files = save(made, self.folder)
        copies = [self._place(visitor, Path(file).name) for file in files]
        for file, copy in zip(files, copies, strict=True):
            shutil.copy(file, copy)
        return copies, messages(told)

    def lend(self, image: np.ndarray | Image.Image, visitor: Any) -> str:
        """The file of an image that a visitor sees, deleted with their session."""
        file = self._place(visitor, "image.png")
        (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(file)
        return file

    def _place(self, visitor: Any, name: str) -> str:
        """For a file of this name in a folder whose own cannot be guessed."""
        folder = self.sessions.uploads / secrets.token_hex(16)
        folder.mkdir()
        self.sessions.keep(visitor, str(folder / name))
        return str(folder / name)

    @property
    def names(self) -> list[str]:
        """Of the models."""
        return list(self.models.offers)


def caption(made: Made) -> str:
    """Scores and seed of an image, in one line."""
    parts = []
    if made.face_sim is not None:
        parts.append(f"Face-Sim {made.face_sim:.2f}")
    if made.clip_t is not None:
        parts.append(f"CLIP-T {made.clip_t:.1f}")
    return " · ".join([*parts, f"seed {made.notes['seed']}"])
