"""Finds copies of images: the same bytes under two names, the same image in another size or
format, and another image under the same name."""

import functools
import hashlib
import os
import zlib
from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image

from data_pipeline.pictures import colours
from data_pipeline.pictures.formats import open_file

SIDE = 16  # side of the compared thumbnails
ALIKE = 4.0  # largest mean difference of two thumbnails' values (of 255) for copies
SAME_ASPECT = 0.02
NEAR_LIMIT = 256  # images: decoding more would delay every start
UNALIKE = 32  # a difference of one value that rules out a copy
BLOCK, BLOCKS = 1024, 16  # bytes per piece, and number of pieces read from a large file


def same_bytes(files: Iterable[str]) -> dict[str, str]:
    """Maps each file that is a copy of an earlier one to that one.

    Only files of equal size are read.
    """
    by_size, copies = defaultdict(list), {}
    for file in dict.fromkeys(files):
        by_size[os.path.getsize(file)].append(file)
    for same in by_size.values():
        first_of = {}
        for file in same if len(same) > 1 else ():
            first = first_of.setdefault(_digest(file), file)
            if first != file:
                copies[file] = first
    return copies


def _digest(file: str) -> bytes:
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "blake2b").digest()


def near_copies(groups: Iterable[Iterable[str]]) -> dict[str, str]:
    """Maps files that look like an earlier one of their group to that one; {} for too many files.

    Crops do not count as copies, nor do files that do not decode.
    """
    groups = [list(dict.fromkeys(files)) for files in groups]
    files = [file for group in groups for file in group]
    if len(files) > NEAR_LIMIT:
        return {}
    with ThreadPoolExecutor() as pool:
        looks = dict(zip(files, pool.map(_look, files), strict=True))
    found = {}
    for group in groups:
        group = [file for file in group if looks[file] is not None]
        for i, file in enumerate(group):
            alike = (other for other in group[:i] if _are_alike(looks[file], looks[other]))
            first = next(alike, None)
            if first is not None:
                found[file] = first
    return found


def _are_alike(one, other) -> bool:
    (aspect, pixels), (other_aspect, others) = one, other
    if abs(aspect / other_aspect - 1) > SAME_ASPECT:
        return False
    apart = np.abs(pixels - others)
    return apart.mean() <= ALIKE and apart.max() < UNALIKE  # two people may share a background


def _look(file: str):
    try:
        found = os.stat(file)
        return _look_once(file, found.st_size, found.st_mtime_ns)
    except Exception:  # the loader will report it
        return None


@functools.lru_cache(4 * NEAR_LIMIT)
def _look_once(file: str, size: int, changed: int) -> tuple[float, np.ndarray]:
    """The aspect ratio and a thumbnail float32 [SIDE, SIDE, 3] of this version of the file."""
    with open_file(file) as image:
        image.draft(None, (4 * SIDE, 4 * SIDE))  # a JPEG is decoded at an eighth of its size
        pixels = colours.to_rgb(image, lambda said: None)
    small = Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BOX)
    return pixels.shape[1] / pixels.shape[0], np.asarray(small, np.float32)


def content_digest(file: str) -> str:
    """Eight hexadecimal digits that depend on an image's content, not on its path or age.

    Computed from its size, its end, where compressed data differ if they differ at all, and pieces
    in between, for uncompressed data.
    """
    try:
        with open(file, "rb") as opened:
            size = opened.seek(0, os.SEEK_END)
            found = zlib.crc32(str(size).encode())
            for piece in range(BLOCKS + 1):
                opened.seek(max(0, size - BLOCK) * piece // BLOCKS)
                found = zlib.crc32(opened.read(BLOCK), found)
            return f"{found:08x}"
    except OSError:
        return "absent.."
