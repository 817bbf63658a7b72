"""Facts about the target that only losses read: generating needs none of them."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from data_pipeline.examples.fields import Batch, Example, Field, Spec, array_spec
from data_pipeline.examples.spatial import Points
from data_pipeline.prompts import join_parts, without_trigger
from data_pipeline.records.schema import PARTS, Record

KEPT_CAPTIONS = 1 << 14


class TargetPoints(Points):
    """The target's own points, as Points: ``name`` [n, 2] and "``name``_mask" [n]."""

    def from_record(self, record: Record, read: Callable, size: tuple[int, int]) -> None:
        return None

    given = Field.given  # no call passes it

    def dropped(self, batch: Batch, xp: Any) -> dict:
        return {}


class CaptionIds(Field):
    """ "caption_ids" [n] int32: caption, background and body for a CLIP of its own tokenizer.

    Args:
        encode: maps a text to ids [n] int32. length: n.
        trigger_word: is removed where it stands.
    """

    name = "caption_ids"

    def __init__(self, encode: Callable[[str], np.ndarray], length: int, trigger_word: str):
        self.length, self.trigger_word = length, trigger_word
        self._encode = functools.lru_cache(KEPT_CAPTIONS)(encode)

    def spec(self, shape: tuple[int, int]) -> Spec:
        return array_spec(caption_ids=((self.length,), np.int32))

    def make(self, example: Example) -> dict[str, np.ndarray]:
        record = example.record
        caption = without_trigger(record.caption, self.trigger_word)
        text = join_parts(caption, *(getattr(record, part) for part in PARTS))
        return {"caption_ids": self._encode(text)}
