"""Buckets: targets of several shapes, so that an image need not be cropped to a square.

As in SDXL (Podell et al., arXiv 2307.01952, section 2.3 and appendix I) an image is trained at the
shape nearest to its aspect ratio, and all images of a batch have one shape.

``config.buckets`` names families, "512" or "1024", or single shapes, "WIDTHxHEIGHT". A family holds
every pair of multiples of 64 between half and twice its side, of which the longer is the longest
that keeps the area at most side squared: 9 shapes for 512, 17 for 1024.

The order of training is a function of the step alone. Every bucket is an endless sequence of
shuffled passes over its images; a batch takes the next ones, so what is left of a pass starts the
next batch of that bucket. Buckets take turns in proportion to their numbers of images: after any
number of steps a bucket is less than one batch ahead of or behind its share, and within a bucket no
image is more than one use ahead of another. So no image is lost or seen more often, except in a
bucket with fewer images than a batch has rows: it comes as rarely as its share says, and then
repeats some images.
"""

import math
import re
import threading
from array import array
from collections.abc import Iterable, Sequence

MULTIPLE = 64
FAMILIES = {"512": 512, "1024": 1024}

Shape = tuple[int, int]  # (height, width) in pixels


class BucketError(ValueError):
    """Buckets that are invalid or cannot be used; the message quotes the config's entry."""


def bucket_shapes(names: str | Iterable[str]) -> tuple[Shape, ...]:
    """The shapes of ``config.buckets``, without duplicates, by rising aspect ratio."""
    names = (names,) if isinstance(names, str) else tuple(map(str, names))
    shapes = set()
    for name in names:
        match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", name)
        if name in FAMILIES:
            shapes |= set(family(FAMILIES[name]))
        elif match:
            width, height = map(int, match.groups())
            shapes.add((height, width))
        else:
            families = ", ".join(f'"{known}"' for known in FAMILIES)
            raise BucketError(
                f'config.buckets: "{name}" is unknown; use {families} or shapes such as "640x384" '
                "(width x height in pixels)"
            )
    return tuple(sorted(shapes, key=lambda shape: (shape[1] / shape[0], shape)))


def family(side: int, multiple: int = MULTIPLE) -> list[Shape]:
    """Shapes with about side squared pixels, from tall to wide."""
    shapes = set()
    for short in range(side // 2, side + 1, multiple):
        long = min(2 * side, side * side // short // multiple * multiple)
        shapes |= {(long, short), (short, long)}
    return sorted(shapes, key=lambda shape: shape[1] / shape[0])


def check_shapes(shapes: Iterable[Shape], multiple: int) -> None:
    """BucketError unless all sides are multiples of ``multiple``, which the networks need."""
    wrong = [f"{w}x{h}" for h, w in shapes if h % multiple or w % multiple]
    if wrong:
        raise BucketError(
            f"config.buckets: {', '.join(wrong)}: this model needs sides that are multiples of "
            f"{multiple} pixels"
        )


def nearest(size: Shape, shapes: Sequence[Shape]) -> int:
    """The index in ``shapes`` at which an image of ``size`` (height, width) is trained.

    Resolution first: that of the largest shape that the image covers without being enlarged, or of
    the smallest shape if it covers none; areas within a factor of 2 are one resolution. Among these
    shapes the one with the nearest aspect ratio (as a ratio of ratios); in a tie the larger.
    """
    height, width = size
    area = [h * w for h, w in shapes]
    covered = [h * w for h, w in shapes if h <= height and w <= width]
    level = max(covered, default=min(area))
    eligible = [i for i in range(len(shapes)) if level / 2 <= area[i] <= level * 2]
    ratio = math.log(width / height)
    distance = {i: abs(math.log(shapes[i][1] / shapes[i][0]) - ratio) for i in eligible}
    return min(eligible, key=lambda i: (round(distance[i], 9), -area[i], i))


class Turns:
    """Which bucket a step uses, and how many batches that bucket had before.

    Every bucket's count stays within one batch of its share (Tijdeman, "The chairman assignment
    problem", 1980): a bucket may take a step if that does not put it a whole batch ahead, and among
    those the one goes whose next batch is due first. Safe to call from several threads.

    Args:
        counts: numbers of images, at least 1 each.
    """

    def __init__(self, counts: Iterable[int]):
        self._counts = list(map(int, counts))
        self._taken = [0] * len(self._counts)
        self._bucket, self._before = array("H"), array("Q")
        self._lock = threading.Lock()

    def __getitem__(self, step: int) -> tuple[int, int]:
        with self._lock:
            while len(self._bucket) <= step:
                self._take(len(self._bucket))
            return self._bucket[step], self._before[step]

    def _take(self, step: int) -> None:
        total, taken, counts = sum(self._counts), self._taken, self._counts
        may = [k for k, n in enumerate(counts) if taken[k] * total < (step + 1) * n]
        k = min(may, key=lambda k: ((taken[k] + 1) / counts[k], k))
        self._bucket.append(k)
        self._before.append(taken[k])
        taken[k] += 1
