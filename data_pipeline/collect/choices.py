"""What the stages after the download pass on: a picture that is still in, or was dropped."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from data_pipeline.collect.looking.looks import Face, Look
from data_pipeline.collect.records import Dropped, Picture


@dataclass(frozen=True)
class Drop(Dropped):
    """A picture that is left out, and why.

    of: the key of the picture that stays in its place. order: the picture's place among all.
    """

    of: str = ""
    order: int = -1

    def dropped(self) -> Dropped:
        """Its line of dropped.jsonl."""
        value = {"bits": self.value, "of": self.of} if self.of else self.value
        return Dropped(
            *(self.stage, self.key, self.identity, self.url, self.reason, value, self.threshold)
        )


@dataclass(frozen=True, eq=False)
class Choice:
    """A picture that is still in.

    Attributes:
        order: its place among all pictures, by which everything is sorted in the end.
        embeddings: [n, d] of length 1, of the faces in ``look``.
        faces: numbers of those that can be the person's.
        face: which of them is the person's, the largest until verification.
        identity: the person; after merging perhaps another name than the picture's.
        score: of verification; None before.
    """

    order: int
    picture: Picture
    look: Look
    embeddings: np.ndarray
    faces: tuple[int, ...] = ()
    face: int = 0
    identity: str = ""
    score: float | None = None

    @property
    def embedding(self) -> np.ndarray:
        """[d], of the person's face."""
        return self.embeddings[self.face]

    @property
    def box(self) -> tuple[float, float, float, float]:
        return self.look.faces[self.face].box

    @property
    def the_face(self) -> Face:
        return self.look.faces[self.face]

    @property
    def pixels(self) -> int:
        return self.look.size[0] * self.look.size[1]

    def with_(self, **changes: Any) -> "Choice":
        return replace(self, **changes)

    def drop(self, stage: str, reason: str, value: Any = None, threshold: Any = None) -> Drop:
        picture = self.picture
        found = Drop(stage, picture.key, picture.identity, picture.url, reason, value, threshold)
        return replace(found, order=self.order)
