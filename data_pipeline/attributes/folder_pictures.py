"""The images of a folder: found, checked by their headers, decoded when they are read."""

import functools
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data_pipeline.attributes.table import TableError, others_suffix, them
from data_pipeline.pictures.listing import ENDINGS, list_images
from data_pipeline.pictures.reading import ImageError, image_size, load_image

KEPT = 1 << 30  # bytes of decoded images


class FolderPictures:
    """Files as a sequence of images, uint8 [size, size, channels], decoded when they are read.

    Up to 1 GiB of them stay in memory.
    """

    def __init__(self, paths: list[str], size: int, channels: int):
        self._paths, self.shape = paths, (size, size, channels)
        self._rows = np.arange(len(paths))
        self._read = functools.lru_cache(KEPT // (size * size * channels))(self._decode)

    def __len__(self):
        return len(self._paths)

    def __getitem__(self, rows) -> np.ndarray:
        """An image, or [n, size, size, channels] for a slice or n indices."""
        rows = self._rows[rows]
        if rows.ndim == 0:
            return self._read(int(rows))
        return np.array([self._read(int(row)) for row in rows], np.uint8).reshape(-1, *self.shape)

    def _decode(self, row: int) -> np.ndarray:
        picture = square(self._paths[row], self.shape[0], self.shape[2])
        picture.setflags(write=False)  # all readers share the array
        return picture


def square(image: Any, size: int, channels: int) -> np.ndarray:
    """The central square of an image in any form that load_image accepts, scaled.

    Returns:
        uint8 [size, size, channels]; channels is 1 (grey) or 3.
    """
    picture = Image.fromarray(load_image(image))
    picture = picture if channels == 3 else picture.convert("L")
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    picture = picture.crop((left, top, left + side, top + side))
    if side != size:
        picture = picture.resize((size, size), Image.Resampling.LANCZOS)
    return np.array(picture).reshape(size, size, channels)


def find_images(folder: Path) -> list[str]:
    """The images' paths relative to ``folder``, sorted; TableError if there are none."""
    found = list_images(folder)
    if not found:
        raise TableError(f"{folder}: no pictures ({', '.join(ENDINGS)}): put some there")
    return found


def read_sizes(folder: Path, pictures: list[str]) -> Counter:
    """Counts of the images' (width, height), from the files' headers."""
    sizes, bad = Counter(), []
    for picture in pictures:
        try:
            sizes[image_size(folder / picture)[::-1]] += 1
        except ImageError as error:
            bad.append(error)
    if bad:
        others = others_suffix(len(bad) - 1, "can")
        raise TableError(f"{bad[0]}{others}: remove {them(len(bad))} with the rows")
    return sizes


def report_sizes(folder: Path, sizes: Counter, size: int) -> None:
    """Print one line about what happens to images whose size is not ``size``."""
    other = [shape for shape, _ in sizes.most_common() if shape != (size, size)]
    if not other:
        return
    more = {1: "", 2: " (and 1 other size)"}.get(len(other), f" (and {len(other) - 1} other sizes)")
    cut = "cut to their middle square and " if any(w != h for w, h in other) else ""
    small = sum(count for shape, count in sizes.items() if min(shape) < size)
    enlarged = f"; {small} smaller ones are enlarged" if small > 1 else ""
    enlarged = "; 1 smaller one is enlarged" if small == 1 else enlarged
    width, height = other[0]
    print(
        f"{folder}: pictures of {width}x{height}{more} are {cut}scaled to {size}x{size}{enlarged}"
    )
