"""Faces with a part missing, smeared or out of place, as bad generators make them, for judges."""

from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from data_pipeline.drawing.pose import Pose
from data_pipeline.drawing.rows import FAULTS, Draws, Rows, fold

PARTS = ("left eye", "right eye", "left brow", "right brow", "mouth")  # left and right in the image
LEAST, MOST = 0.2, 0.5  # how far a part moves, in half face heights


@dataclass(frozen=True)
class Faults(Rows):
    """Per part of PARTS: ``missing`` and ``smeared`` [n, 5] bool, and ``offset`` [n, 5, 2] in head
    coordinates."""

    missing: np.ndarray
    smeared: np.ndarray
    offset: np.ndarray

    @classmethod
    def draw(cls, seeds: np.ndarray, rate: float = 0.3) -> Self:
        """Each part has one of the faults with probability ``rate``; seeds [n] integers."""
        draws = Draws(fold(FAULTS, seeds))
        faulty = draws.uniform(columns=len(PARTS)) < rate
        kind = draws.uniform(columns=len(PARTS))
        missing, smeared = faulty & (kind < 1 / 3), faulty & (kind >= 2 / 3)
        distance = draws.uniform(LEAST, MOST, columns=len(PARTS))
        angle = draws.uniform(0, 2 * np.pi, columns=len(PARTS))
        offset = distance[..., None] * np.stack([np.cos(angle), np.sin(angle)], axis=-1)
        return cls(missing, smeared, offset * (faulty & ~missing & ~smeared)[..., None])

    @property
    def present(self) -> np.ndarray:
        """[n, 5] bool: drawn, recognisable, and in its place."""
        return ~self.missing & ~self.smeared & (self.offset == 0).all(-1)

    def moved(self, pose: Pose) -> Pose:
        """The pose with its parts out of place."""
        return replace(
            pose,
            eyes=pose.eyes + self.offset[:, 0:2],
            brows=pose.brows + self.offset[:, 2:4],
            mouth=pose.mouth + self.offset[:, 4],
        )
