"""Signed distances to shapes: negative inside, positive outside, in the space's own unit.

A space has coordinates ``u`` (right) and ``v`` (down), broadcastable to [n, h, w]. Every number of
a shape may be a scalar or an array [n], one value per image.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

Value = Any  # a number for all images, or an array [n]; of colours [3] or [n, 3]


@dataclass(frozen=True)
class Space:
    """Coordinates ``u``, ``v``, broadcastable to [n, h, w], and ``pixel``, a pixel's side."""

    u: np.ndarray
    v: np.ndarray
    pixel: np.ndarray | np.float32


def per_picture(value: Value) -> np.ndarray:
    """Scalars unchanged, [n] to [n, 1, 1] float32."""
    value = np.asarray(value, np.float32)
    return value[:, None, None] if value.ndim == 1 else value


def ellipse(space: Space, x: Value, y: Value, radius_x: Value, radius_y: Value) -> np.ndarray:
    """First-order distance: exact on the outline, good near it. [n, h, w]"""
    x, y, radius_x, radius_y = map(per_picture, (x, y, radius_x, radius_y))
    p, q = (space.u - x) / radius_x, (space.v - y) / radius_y
    norm = np.sqrt(p * p + q * q)
    slope = np.square(p / radius_x) + np.square(q / radius_y)
    # The centre itself has no direction: the small number avoids 0/0.
    return norm * (norm - 1) / np.sqrt(slope + np.float32(1e-6))


def circle(space: Space, x: Value, y: Value, radius: Value) -> np.ndarray:
    x, y = per_picture(x), per_picture(y)
    return np.sqrt(np.square(space.u - x) + np.square(space.v - y)) - per_picture(radius)


def box(space: Space, x: Value, y: Value, half_width: Value, half_height: Value) -> np.ndarray:
    """An upright rectangle with sharp corners."""
    x, y, half_width, half_height = map(per_picture, (x, y, half_width, half_height))
    return np.maximum(np.abs(space.u - x) - half_width, np.abs(space.v - y) - half_height)


def round_box(
    space: Space, x: Value, y: Value, half_width: Value, half_height: Value, radius: Value
) -> np.ndarray:
    """An upright rectangle whose corners have ``radius``."""
    x, y, half_width, half_height = map(per_picture, (x, y, half_width, half_height))
    radius = per_picture(radius)
    p = np.abs(space.u - x) - (half_width - radius)
    q = np.abs(space.v - y) - (half_height - radius)
    corner = np.sqrt(np.square(np.maximum(p, 0)) + np.square(np.maximum(q, 0)))
    return corner + np.minimum(np.maximum(p, q), 0) - radius


def capsule(
    space: Space, x0: Value, y0: Value, x1: Value, y1: Value, radius0: Value, radius1: Value = None
) -> np.ndarray:
    """A line from (x0, y0) to (x1, y1) with round ends, ``radius0`` to ``radius1`` thick."""
    x0, y0, x1, y1, radius0 = map(per_picture, (x0, y0, x1, y1, radius0))
    radius1 = radius0 if radius1 is None else per_picture(radius1)
    dx, dy = x1 - x0, y1 - y0
    length = np.maximum(dx * dx + dy * dy, np.float32(1e-9))
    p, q = space.u - x0, space.v - y0
    along = np.minimum(np.maximum(p * (dx / length) + q * (dy / length), 0), 1)
    p, q = p - along * dx, q - along * dy
    return np.sqrt(p * p + q * q) - (radius0 + along * (radius1 - radius0))


def peak(space: Space, x: Value, top: Value, slope: Value) -> np.ndarray:
    """A triangle without a base: its half width is ``slope`` times the depth below its top."""
    x, top, slope = map(per_picture, (x, top, slope))
    return (np.abs(space.u - x) - (space.v - top) * slope) / np.sqrt(1 + slope * slope)


def ring(distance: np.ndarray, half_width: Value) -> np.ndarray:
    """The outline of a shape as a band."""
    return np.abs(distance) - per_picture(half_width)


def wave(t: np.ndarray) -> np.ndarray:
    """A periodic smooth bump with period 1 in [0, 1]; plain arithmetic, so equal on every CPU."""
    f = t - np.floor(t)
    f = f * (1 - f)
    return 16 * f * f
