"""Decoded pictures, kept in memory up to a limit."""

import logging
import threading
from collections.abc import Callable, Sequence

import numpy as np

from data_pipeline.pictures.reading import ImageError, image_size, load_image

log = logging.getLogger(__name__)

SHOWN_PROBLEMS = 20


def from_memory(images: np.ndarray, names: Sequence[str], where: str) -> Callable:
    """A reader of pictures that are in memory.

    Args:
        images: uint8 RGB [n, h, w, 3].
        names: of the n pictures.
        where: what they are, for the message.
    """
    row = {name: i for i, name in enumerate(names)}

    def read(name: str) -> np.ndarray:
        if name not in row:
            raise ImageError(f"{name}: no such image in {where}")
        return images[row[name]]

    return read


class ImageCache:
    """Reads pictures by name; safe to use from several threads.

    Args:
        read_image: a record's ``image`` to uint8 RGB [h, w, 3]; raises an ImageError.
        cache_bytes: size of the memory cache. Nothing is ever evicted: under shuffling, an old
            picture is as likely to be next as any other.

    Attributes:
        skipped: each file that could not be decoded, and why.
    """

    def __init__(self, read_image: Callable = load_image, cache_bytes: int = 1 << 30):
        self.read_image = read_image
        self.skipped: dict[str, str] = {}
        self._kept: dict[tuple, np.ndarray] = {}
        self._free_bytes = cache_bytes
        self._lock = threading.Lock()

    def image(self, name: str) -> np.ndarray:
        """The decoded image. ImageError if it cannot be decoded, now or earlier."""
        if name in self.skipped:
            raise ImageError(self.skipped[name])

        def read():
            try:
                return self.read_image(name)
            except ImageError as error:
                self.skip(name, error)
                raise

        return self.kept(("image", name), read)

    def size(self, name: str) -> tuple[int, int]:
        """(height, width), decoded only if necessary. ImageError as for ``image``."""
        if self.read_image is not load_image:
            return self.image(name).shape[:2]
        try:
            return image_size(name)
        except ImageError as error:
            self.skip(name, error)
            raise

    def skip(self, name: str, error: ImageError) -> None:
        """Remember that a file cannot be used, and say so once."""
        with self._lock:
            known = name in self.skipped
            self.skipped[name] = str(error)
        if not known:
            log.warning("picture %d that is passed over: %s", len(self.skipped), error)

    def kept(self, key: tuple, make: Callable[[], np.ndarray]) -> np.ndarray:
        """The array of this key, created if it is not in memory."""
        if key in self._kept:
            return self._kept[key]
        array = make()
        with self._lock:
            if key not in self._kept and array.nbytes <= self._free_bytes:
                self._kept[key] = array
                self._free_bytes -= array.nbytes
        return array
