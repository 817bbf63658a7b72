"""Convex polygons and discs, pixel for pixel as OpenCV fills them without antialiasing.

Published ControlNets were trained on skeletons that OpenCV drew. It is none of our dependencies, so
its rules are written down here, of ellipse2Poly, fillConvexPoly and circle; the tests draw the same
with OpenCV. Positions are whole pixels (x, y); what lies outside of the image is cut off.
"""

import functools

import numpy as np

# OpenCV's table has seven decimals in float32; the exact sine ends in other pixels now and then.
_SINES = np.round(np.sin(np.deg2rad(np.arange(451))), 7).astype(np.float32).astype(np.float64)
_FRACTION = 16  # bits of a fixed-point x


def ellipse_polygon(
    centre: tuple[int, int], half_axes: tuple[int, int], degrees: int
) -> np.ndarray:
    """The ellipse's outline in steps of one degree, int64 [n, 2] (x, y), the first point twice.

    Args:
        half_axes: along the direction ``degrees`` (from x to y) and across it, in pixels.
    """
    turn, steps = degrees % 360, np.arange(361)
    cos, sin = _SINES[450 - turn], _SINES[turn]
    along, across = half_axes[0] * _SINES[450 - steps], half_axes[1] * _SINES[steps]
    x = centre[0] + along * cos - across * sin
    y = centre[1] + along * sin + across * cos
    points = np.rint(np.stack([x, y], 1)).astype(np.int64)
    new = np.ones(len(points), bool)
    new[1:] = (points[1:] != points[:-1]).any(1)
    return points[new]


def fill_polygon(image: np.ndarray, points: np.ndarray, colour: tuple[int, ...]) -> None:
    """Fill a convex polygon, int [n, 2], and its outline in ``image`` [h, w, c], in place."""
    points = np.asarray(points, np.int64)
    height, width = image.shape[:2]
    rows, columns = _outline(points, height, width)
    image[rows, columns] = colour
    for row, left, right in _spans(points, height):
        if right >= 0 and left < width:
            image[row, max(left, 0) : right + 1] = colour


def fill_disc(
    image: np.ndarray, centre: tuple[int, int], radius: int, colour: tuple[int, ...]
) -> None:
    """Fill a disc in ``image`` [h, w, c], in place."""
    x, y = centre
    height = len(image)
    for offset, half in enumerate(_half_widths(radius)):
        for row in (y - offset, y + offset):
            if 0 <= row < height and x + half >= 0:
                image[row, max(x - half, 0) : x + half + 1] = colour


@functools.cache
def _half_widths(radius: int) -> tuple[int, ...]:
    """Half the width of each row of a disc from the middle on, by the midpoint rule."""
    half, x, y = [0] * (radius + 1), radius, 0
    while x >= y:
        half[y], half[x] = max(half[y], x), max(half[x], y)
        y += 1
        if x * x + y * y > radius * radius:
            x -= 1
    return tuple(half)


def _spans(points, height):
    """(row, left, right), both inclusive, between the sides of the polygon.

    The last row has none: its outline is all that is drawn of it.
    """
    start, end = np.roll(points, 1, axis=0), points
    down = (start[:, 1] <= end[:, 1])[:, None]
    upper, lower = np.where(down, start, end), np.where(down, end, start)
    first, last = np.maximum(upper[:, 1], 0), np.minimum(lower[:, 1], height)
    kept = first < last
    upper, lower, first, last = upper[kept], lower[kept], first[kept], last[kept]
    if not len(first):
        return
    fall = lower[:, 1] - upper[:, 1]
    twice = ((lower[:, 0] - upper[:, 0]) << (_FRACTION + 1)) + fall
    slope = np.sign(twice) * (np.abs(twice) // (2 * fall))  # rounded towards zero
    side, step = _counted(last - first)
    rows = first[side] + step
    x = (upper[side, 0] << _FRACTION) + (rows - upper[side, 1]) * slope[side]
    top, bottom = rows.min(), rows.max() + 1
    left = np.full(bottom - top, np.iinfo(np.int64).max)
    right = np.full(bottom - top, np.iinfo(np.int64).min)
    np.minimum.at(left, rows - top, x)
    np.maximum.at(right, rows - top, x)
    half = 1 << (_FRACTION - 1)
    spans = np.stack([left + half, right + half], 1) >> _FRACTION
    for row, (a, b) in zip(range(top, bottom), spans.tolist(), strict=True):
        yield row, a, b


def _outline(points, height, width):
    """Rows and columns of the pixels on the polygon's edges, inside of the image.

    From its left end on, a line takes the pixel next to it in every step; of two equally near ones
    the one before.
    """
    start, end = _clip_all(np.roll(points, 1, axis=0), points, height, width)
    back = (end[:, 0] < start[:, 0])[:, None]
    start, end = np.where(back, end, start), np.where(back, start, end)
    dx, dy = (end - start).T
    steep = np.abs(dy) > dx
    long, short = np.maximum(dx, np.abs(dy)), np.minimum(dx, np.abs(dy))
    line, step = _counted(long + 1)
    long, short, steep = np.maximum(long, 1)[line], short[line], steep[line]
    aside = -((long - 2 * short * step) // (2 * long))
    columns = start[line, 0] + np.where(steep, aside, step)
    rows = start[line, 1] + np.sign(dy)[line] * np.where(steep, step, aside)
    return rows, columns


def _clip_all(start, end, height, width):
    last = np.array([width - 1, height - 1])
    beyond = ((start < 0) & (end < 0)) | ((start > last) & (end > last))
    kept = ~beyond.any(1)
    start, end = start[kept], end[kept]
    inside = ((start >= 0) & (start <= last) & (end >= 0) & (end <= last)).all(1)
    cut = [_clip(a, b, last.tolist()) for a, b in zip(start[~inside], end[~inside], strict=True)]
    further = np.array([line for line in cut if line], np.int64).reshape(-1, 2, 2)
    return np.concatenate([start[inside], further[:, 0]]), np.concatenate(
        [end[inside], further[:, 1]]
    )


def _clip(start, end, last):
    """The line's part inside of the image, with its ends on whole pixels; None if there is none.

    It is cut at the upper and lower border first.
    """
    a, b = start.tolist(), end.tolist()
    for axis in (1, 0):
        if max(a[axis], b[axis]) < 0 or min(a[axis], b[axis]) > last[axis]:
            return None
        for point, other in ((a, b), (b, a)):
            border = min(max(point[axis], 0), last[axis])
            if border != point[axis]:
                across = other[1 - axis] - point[1 - axis]
                along = other[axis] - point[axis]
                point[1 - axis] += int((border - point[axis]) * across / along)
                point[axis] = border
    return a, b


def _counted(counts):
    """For counts [n]: the index of each, repeated so often, and 0, 1, 2, … within it."""
    index = np.repeat(np.arange(len(counts)), counts)
    return index, np.arange(len(index)) - (np.cumsum(counts) - counts)[index]
