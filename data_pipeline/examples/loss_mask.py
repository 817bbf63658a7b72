"""Where the loss counts: a mask that belongs to a picture."""

from collections.abc import Callable
from typing import Any

import numpy as np

from data_pipeline.examples.fields import Batch, Example, Field, Spec, array_spec
from data_pipeline.examples.spatial import ControlImage
from data_pipeline.records.schema import Record


class LossMask(ControlImage):
    """ "loss_mask" [h, w] float32 in 0..1, 1 where the loss counts, cropped like the target.

    From the manifest's ``images``, of any name: {"mask": "masks/anna_1.png"}, white where it
    counts. Class images, and other records of a data set in which only some have masks, count
    whole.

    Args:
        key: of the manifest's ``images``.
    """

    def __init__(self, key: str):
        super().__init__(key)
        self.name = "loss_mask"
        self._without: list[str] = []

    def spec(self, shape: tuple[int, int]) -> Spec:
        return array_spec(loss_mask=(shape, np.float32))

    def make(self, example: Example) -> dict[str, np.ndarray]:
        if self.key not in (example.record.images or {}):
            return {"loss_mask": np.ones(example.crop.size, np.float32)}
        return {"loss_mask": self._cut(example).mean(axis=2, dtype=np.float32)}

    def check(self, record: Record, others: int) -> None:
        if self.key in (record.images or {}):
            super().check(record, others)
        else:
            self._without.append(record.image)

    def notes(self) -> list[str]:
        without, self._without = list(dict.fromkeys(self._without)), []
        if not without:
            return []
        return [
            f"config.loss_mask={self.key!r}: {len(without)} images have no such mask and count "
            f"whole, such as {without[0]}"
        ]

    given = Field.given  # no call passes it

    def from_record(self, record: Record, read: Callable, size: tuple[int, int]) -> None:
        return None

    def dropped(self, batch: Batch, xp: Any) -> dict:
        return {}
