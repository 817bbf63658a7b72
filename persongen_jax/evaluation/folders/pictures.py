"""Pictures that are read from their files when they are asked for, after all were decoded once."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from data_pipeline.pictures.reading import ImageError
from persongen_jax.features.store import digest_of


class Picture(NamedTuple):
    """A picture by its name in messages, and what reads it: () -> uint8 RGB [h, w, 3]."""

    name: str
    read: Callable[[], np.ndarray]


class Pictures(Sequence):
    """Pictures in a fixed order.

    Attributes:
        names: of each, for messages.
        digests: of each one's pixels.
    """

    def __init__(self, pictures: Sequence[Picture], digests: Sequence[bytes]):
        self._pictures = list(pictures)
        self.names = [picture.name for picture in pictures]
        self.digests = list(digests)

    def __len__(self) -> int:
        return len(self._pictures)

    def __getitem__(self, i):
        if isinstance(i, slice):
            return [picture.read() for picture in self._pictures[i]]
        return self._pictures[i].read()


def decode(pictures: Sequence[Picture]) -> list[bytes | ImageError]:
    """Each picture's digest, or why it cannot be decoded."""
    with ThreadPoolExecutor() as pool:
        return list(pool.map(_digest, pictures))


def _digest(picture: Picture) -> bytes | ImageError:
    try:
        return digest_of(picture.read())
    except ImageError as error:
        return error
