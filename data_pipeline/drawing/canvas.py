"""A batch of images being drawn: pixels, their coordinates, and anti-aliased filling.

A frame is 1 × 1: x to the right, y down, whatever its number of pixels. ``Canvas.parts`` cuts out
small windows, because a mouth should not cost as much as a sky.
"""

from collections.abc import Iterator, Sequence
from typing import Self

import numpy as np

from data_pipeline.drawing.shapes import Space, Value, per_picture

CHUNK = 32  # images drawn together; more would not fit the CPU's second-level cache


class Canvas:
    """``pixels`` [n, 3, h, w] float32 in [0, 1]; x [n or 1, 1, w] and y [n or 1, h, 1] in sides."""

    def __init__(self, pixels: np.ndarray, x: np.ndarray, y: np.ndarray, size: int):
        self.pixels, self.x, self.y, self.size = pixels, x, y, size

    @classmethod
    def blank(cls, count: int, size: int) -> Self:
        centres = ((np.arange(size) + 0.5) / size).astype(np.float32)
        pixels = np.zeros((count, 3, size, size), np.float32)
        return cls(pixels, centres[None, None, :], centres[None, :, None], size)

    def __len__(self):
        return len(self.pixels)

    @property
    def frame(self) -> Space:
        """The frame's own coordinates."""
        return Space(self.x, self.y, np.float32(1 / self.size))

    def space(self, x: Value, y: Value, unit: Value, angle: Value = None) -> Space:
        """Coordinates around (x, y) in steps of ``unit``, turned clockwise by ``angle`` radians."""
        unit = per_picture(unit)
        u, v = (self.x - per_picture(x)) / unit, (self.y - per_picture(y)) / unit
        if angle is not None:
            cos, sin = per_picture(np.cos(angle)), per_picture(np.sin(angle))
            u, v = u * cos + v * sin, v * cos - u * sin
        return Space(u, v, np.float32(1 / self.size) / unit)

    def paint(
        self, space: Space, distance: np.ndarray, colour: Value, opacity: Value = 1.0
    ) -> None:
        """Fill a shape with an edge one pixel wide.

        ``distance`` [n, h, w] in the space's unit, ``colour`` [3] or [n, 3] in [0, 1], ``opacity``
        a scalar or [n].
        """
        self.soften(distance, space.pixel, colour, opacity)

    def soften(
        self, distance: np.ndarray, width: Value, colour: Value, opacity: Value = 1.0
    ) -> None:
        """Fill a shape with an edge ``width`` wide, in the space's unit: the same blur at every
        resolution."""
        alpha = np.float32(0.5) - distance * (1 / per_picture(width))
        np.maximum(alpha, 0, out=alpha)
        np.minimum(alpha, 1, out=alpha)
        self.blend(alpha, colour, opacity)

    def blend(self, alpha: np.ndarray, colour: Value, opacity: Value = 1.0) -> None:
        """Blend ``colour`` over the pixels, with ``alpha`` [n, h, w]."""
        if np.ndim(opacity) or opacity != 1:
            alpha = alpha * per_picture(opacity)
        colour = np.asarray(colour, np.float32)
        colour = colour.reshape(-1, 3, 1, 1)
        change = colour - self.pixels
        change *= alpha[:, None]
        self.pixels += change

    def chunks(self) -> Iterator[tuple["Canvas", slice]]:
        """(canvas, slice) pairs of at most CHUNK images that share this canvas' memory."""
        for start in range(0, len(self), CHUNK):
            rows = slice(start, min(start + CHUNK, len(self)))
            x, y = (a if len(a) == 1 else a[rows] for a in (self.x, self.y))
            yield Canvas(self.pixels[rows], x, y, self.size), rows

    def parts(
        self, mask: np.ndarray | None = None, window: Sequence[Value] | None = None
    ) -> Iterator[tuple["Canvas", np.ndarray]]:
        """(canvas, rows) pairs that cover the images of ``mask`` [n], written back when exhausted.

        ``window`` is (x, y, half_width, half_height) in sides, scalars or [n] each: at least the
        pixels in it are cut out. No pairs if there is nothing to paint.
        """
        count = len(self)
        chosen = np.arange(count) if mask is None else np.flatnonzero(mask)
        for start in range(0, len(chosen), CHUNK):
            rows = chosen[start : start + CHUNK]
            left, top, width, height = self._window(window, rows)
            pixels = np.empty((len(rows), 3, height, width), np.float32)
            for i, row in enumerate(rows):
                x0, y0 = left[i], top[i]
                pixels[i] = self.pixels[row, :, y0 : y0 + height, x0 : x0 + width]
            x = self._cut(self.x[:, 0], rows, left, width)[:, None, :]
            y = self._cut(self.y[:, :, 0], rows, top, height)[:, :, None]
            yield Canvas(pixels, x, y, self.size), rows
            for i, row in enumerate(rows):
                x0, y0 = left[i], top[i]
                self.pixels[row, :, y0 : y0 + height, x0 : x0 + width] = pixels[i]

    def _window(self, window, rows):
        """Left columns [k] and top rows [k], width and height in pixels."""
        height, width = self.pixels.shape[2:]
        if window is None:
            zeros = np.zeros(len(rows), int)
            return zeros, zeros, width, height
        values = (np.broadcast_to(np.asarray(v, np.float64), len(self))[rows] for v in window)
        x, y, half_width, half_height = values
        left, width = self._span(x, half_width, self.x[:, 0], rows)
        top, height = self._span(y, half_height, self.y[:, :, 0], rows)
        return left, top, width, height

    def _span(self, middle, half, centres, rows):
        limit = centres.shape[1]
        length = int(min(limit, np.ceil(2 * half.max() * self.size) + 2))
        start = np.floor(middle * self.size - length / 2)
        first = centres[:, 0] * self.size - 0.5
        start = start - (first if len(first) == 1 else first[rows])
        return np.clip(start, 0, limit - length).astype(int), length

    @staticmethod
    def _cut(centres, rows, start, length):
        columns = start[:, None] + np.arange(length)
        return centres[0][columns] if len(centres) == 1 else centres[rows[:, None], columns]
