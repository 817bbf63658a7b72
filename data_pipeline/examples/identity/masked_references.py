"""References that show the person alone: grey where a mask says that the surroundings are."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from data_pipeline.examples.conditions import References
from data_pipeline.examples.fields import Encoding, FieldError, Input
from data_pipeline.pictures.transforms import resize
from data_pipeline.records.masks import NAME as MASK
from data_pipeline.records.schema import Record

GREY = 127.0  # near the mean of CLIP's inputs, so that it says little


class MaskedReferences(References):
    """References with the image "mask" of their records: white is the person.

    References of a call are read as they are.
    """

    keys = (f"images.{MASK}",)

    def __init__(self, size: int, encoding: Encoding | None = None):
        super().__init__(size, encoding)

    def check(self, record: Record, others: int) -> None:
        mask_of(record)

    def picture(self, source: Any, record: Record) -> np.ndarray:
        image = super().picture(source, record)
        return grey_around(image, source.pictures.image(mask_of(record)))

    def of(self, source: Any, record: Record) -> Input:
        plain = super().of(source, record)

        def key():
            return *plain.key(), source.features.picture_of(source, mask_of(record)).digest

        return plain._replace(key=key)

    def from_records(self, records: Sequence[Record], read: Any, size: tuple) -> list:
        return [grey_around(read(r.image), read(mask_of(r))) for r in records]


def mask_of(record: Record) -> str:
    """The name of a record's mask; FieldError without one."""
    name = (record.images or {}).get(MASK)
    if not name:
        raise FieldError(
            f'config.references="masked" needs a mask of the person: "images": {{"{MASK}": FILE}} '
            "in the manifest, or a file such as 1_mask.png next to 1.png"
        )
    return name


def grey_around(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """``image`` [h, w, 3] uint8 where ``mask`` [h', w', 3], of any size, is white; else grey."""
    height, width = image.shape[:2]
    if mask.shape[:2] != (height, width):
        mask = resize(mask, (height, width))
    share = mask.mean(axis=2, keepdims=True) / 255
    return (image * share + GREY * (1 - share)).round().astype(np.uint8)
