"""The scenes behind the people: one function per scene, drawn on the whole frame.

Every scene has named objects in known positions, so that a caption can be true or false. Objects
are at the sides, because the person is in the middle; ``mirrored`` images are flipped at the end.
``detail`` is [n, 12] in [0, 1).
"""

import numpy as np

from data_pipeline.drawing import shapes
from data_pipeline.drawing.canvas import Canvas
from data_pipeline.drawing.pictures import SCENES, Pictures
from data_pipeline.drawing.rows import SCENERY, Draws, fold
from data_pipeline.drawing.shapes import Value, per_picture

DAY = ((0.36, 0.62, 0.95), (0.76, 0.89, 0.99))  # the sky's colours, above and at the horizon
SUNSET = ((0.42, 0.22, 0.50), (0.99, 0.56, 0.28))
STONE, WOOD, TRUNK = (0.55, 0.54, 0.56), (0.48, 0.29, 0.14), (0.36, 0.22, 0.10)


def paint_scenes(canvas: Canvas, pictures: Pictures) -> None:
    for place, name in enumerate(SCENES):
        for part, rows in canvas.parts(pictures.scene == place):
            PAINTERS[name](part, pictures.detail[rows], pictures.sunset[rows])
            flipped = np.flatnonzero(pictures.mirrored[rows])
            part.pixels[flipped] = part.pixels[flipped][..., ::-1]


def _sky(canvas, sunset):
    above, below = (np.where(sunset[:, None], SUNSET[i], DAY[i]) for i in (0, 1))
    _gradient(canvas, above, below, 0.7)


def _gradient(canvas, above, below, end=1.0):
    """A gradient from the top to ``end`` of the frame's height."""
    above, below = (np.asarray(c, np.float32).reshape(-1, 3, 1, 1) for c in (above, below))
    part = np.minimum(canvas.y / np.float32(end), 1)[:, None]
    canvas.pixels[:] = above + (below - above) * part


def _ground(canvas, top, colour):
    frame = canvas.frame
    canvas.paint(frame, shapes.per_picture(top) - frame.v + 0 * frame.u, colour)


def _box(canvas, left, top, right, bottom, colour):
    """A box given by its edges, scalars or [n]."""
    x, y = (np.add(left, right) / 2, np.add(top, bottom) / 2)
    half = np.subtract(right, left) / 2, np.subtract(bottom, top) / 2
    for part, rows in canvas.parts(window=(x, y, *half)):
        values = (np.broadcast_to(v, len(canvas))[rows] for v in (x, y, *half))
        chosen = np.asarray(colour)
        chosen = chosen[rows] if chosen.ndim == 2 else chosen
        part.paint(part.frame, shapes.box(part.frame, *values), chosen)


def _blob(canvas, x, y, radius_x, radius_y, colour):
    """An ellipse; scalars or [n]."""
    shape = x, y, radius_x, radius_y
    for part, rows in canvas.parts(window=shape):
        values = (np.broadcast_to(v, len(canvas))[rows] for v in shape)
        part.paint(part.frame, shapes.ellipse(part.frame, *values), colour)


def _line(canvas, x0, y0, x1, y1, radius, colour):
    """A capsule; scalars or [n]."""
    window = (
        *(np.add(x0, x1) / 2, np.add(y0, y1) / 2),
        *(np.abs(np.subtract(x1, x0)) / 2 + radius, np.abs(np.subtract(y1, y0)) / 2 + radius),
    )
    for part, rows in canvas.parts(window=window):
        values = (np.broadcast_to(v, len(canvas))[rows] for v in (x0, y0, x1, y1))
        part.paint(part.frame, shapes.capsule(part.frame, *values, radius), colour)


def _stars(canvas, count, colour, radius, seed):
    """Small dots in fixed positions: the same starry sky in every image."""
    for x, y in Draws(fold(SCENERY, seed, np.arange(count))).uniform(columns=2):
        _blob(canvas, x, y, radius, radius, colour)


def mountains(canvas: Canvas, detail: np.ndarray, sunset: np.ndarray) -> None:
    _sky(canvas, sunset)
    frame = canvas.frame
    castle_top = 0.27 + 0.08 * detail[:, 2]
    peaks = (
        (0.50 + 0.06 * (detail[:, 0] - 0.5), 0.20 + 0.10 * detail[:, 0], (0.38, 0.42, 0.54)),
        (0.12 + 0.06 * (detail[:, 1] - 0.5), 0.22 + 0.12 * detail[:, 1], (0.46, 0.49, 0.60)),
        (np.full(len(detail), 0.87), castle_top, (0.42, 0.45, 0.50)),
    )
    for place, (x, top, colour) in enumerate(peaks):
        slope = (0.62, 0.62, 0.75)[place]
        rock = shapes.peak(frame, x, top, slope)
        canvas.paint(frame, rock, colour)
        if place < 2:  # the castle is on top of the third one, where there is no snow
            snow_line = per_picture(top + 0.11)
            canvas.paint(frame, np.maximum(rock, frame.v - snow_line), (0.97, 0.98, 1.0))
    _ground(canvas, 0.72 + 0.06 * detail[:, 3], (0.30, 0.58, 0.24))
    for left, width, rise in ((0.77, 0.05, 0.16), (0.92, 0.05, 0.16), (0.835, 0.07, 0.24)):
        _box(canvas, left, castle_top + 0.06 - rise, left + width, castle_top + 0.1, STONE)
        roof = shapes.peak(frame, left + width / 2, castle_top - rise - 0.02, 0.5)
        roof = np.maximum(roof, frame.v - per_picture(castle_top + 0.07 - rise))
        canvas.paint(frame, roof, (0.70, 0.16, 0.14))
    _box(canvas, 0.77, castle_top, 0.97, castle_top + 0.12, STONE)
    _box(canvas, 0.845, castle_top + 0.03, 0.895, castle_top + 0.12, (0.22, 0.16, 0.14))


def city(canvas: Canvas, detail: np.ndarray, sunset: np.ndarray) -> None:
    top: Value
    _sky(canvas, sunset)
    frame = canvas.frame
    houses = (
        (0.30, 0.52, 0.28, 0.58),
        (0.47, 0.70, 0.18, 0.66),
        (0.66, 0.86, 0.30, 0.5),
        (0.82, 1.02, 0.12, 0.72),
    )
    for place, (left, right, top, shade) in enumerate(houses):
        top = top + 0.1 * detail[:, place]
        tint = np.array([0.92, 0.96, 1.05]) * shade
        wall = shapes.box(
            frame, (left + right) / 2, (top + 1.0) / 2, (right - left) / 2, (1.0 - top) / 2
        )
        canvas.paint(frame, wall, tint)
        columns, lines = shapes.wave((frame.u - left) * 18), shapes.wave((frame.v - 0.03) * 14)
        lit = np.maximum(wall + np.float32(0.012), (0.55 - columns * lines) * 0.02)
        canvas.paint(frame, lit, (0.98, 0.93, 0.62))
    _ground(canvas, 0.84, (0.30, 0.30, 0.33))
    _box(canvas, -0.05, 0.38, 0.31, 0.86, (0.90, 0.86, 0.76))
    for column in (0.0, 0.085, 0.17, 0.255):
        _box(canvas, column, 0.46, column + 0.035, 0.82, (0.68, 0.62, 0.50))
    roof = shapes.peak(frame, 0.13, 0.29, 1.9)
    canvas.paint(frame, np.maximum(roof, frame.v - np.float32(0.40)), (0.72, 0.66, 0.54))
    # "Neon Bank": at 64 pixels a sign cannot be read, but its colours are unique.
    _box(canvas, -0.01, 0.10, 0.32, 0.27, (0.10, 0.03, 0.16))
    glow = np.where(detail[:, 5:6] < 0.5, (1.0, 0.15, 0.75), (0.10, 0.95, 0.95))
    for letter in range(4):
        left = 0.03 + 0.07 * letter
        _box(canvas, left, 0.13, left + 0.042, 0.175, glow)
        _box(canvas, left, 0.195, left + 0.042, 0.24, glow)


def desert(canvas: Canvas, detail: np.ndarray, sunset: np.ndarray) -> None:
    x: Value
    y: Value
    top: Value
    _sky(canvas, sunset)
    frame = canvas.frame
    horizon = 0.50 + 0.06 * detail[:, 0]
    dunes = np.float32(0.03) * shapes.wave(frame.u * 1.3 + per_picture(detail[:, 1]))
    canvas.paint(frame, per_picture(horizon) + dunes - frame.v, (0.93, 0.76, 0.44))
    _blob(canvas, 0.16, horizon + 0.16, 0.24, 0.075, (0.20, 0.55, 0.75))
    _blob(canvas, 0.16, horizon + 0.15, 0.17, 0.035, (0.45, 0.75, 0.90))
    for x, top in ((0.08, 0.20), (0.25, 0.27)):
        x, top = x + 0.05 * (detail[:, 2] - 0.5), top + 0.06 * (detail[:, 3] - 0.5)
        _line(canvas, x - 0.02, horizon + 0.12, x, top, 0.016, TRUNK)
        for across, down in (
            (-0.13, 0.05),
            (-0.09, -0.07),
            (0.02, -0.1),
            (0.11, -0.05),
            (0.13, 0.06),
        ):
            _line(canvas, x, top, x + across, top + down, 0.019, (0.10, 0.48, 0.20))
    coat = (0.62, 0.42, 0.22)
    for x, y in ((0.77, 0.06), (0.92, 0.13)):
        y = horizon + y + 0.04 * (detail[:, 4] - 0.5)
        _blob(canvas, x, y, 0.075, 0.042, coat)
        for hump in (-0.03, 0.03):
            _blob(canvas, x + hump, y - 0.045, 0.026, 0.035, coat)
        _line(canvas, x + 0.065, y, x + 0.10, y - 0.09, 0.016, coat)
        _line(canvas, x + 0.10, y - 0.095, x + 0.135, y - 0.085, 0.018, coat)
        for leg in (-0.055, -0.03, 0.03, 0.055):
            _line(canvas, x + leg, y, x + leg, y + 0.13, 0.0105, coat)


def room(canvas: Canvas, detail: np.ndarray, sunset: np.ndarray) -> None:
    del sunset
    _gradient(canvas, (0.97, 0.97, 0.96), (0.90, 0.90, 0.89))
    _ground(canvas, 0.86, (0.66, 0.45, 0.27))
    y = 0.12 + 0.08 * detail[:, 0]
    _box(canvas, 0.03, y, 0.26, y + 0.32, (0.72, 0.52, 0.14))  # the portrait's gilded frame
    _box(canvas, 0.06, y + 0.03, 0.23, y + 0.29, (0.22, 0.34, 0.32))
    _blob(canvas, 0.145, y + 0.25, 0.075, 0.065, (0.45, 0.12, 0.14))
    _box(canvas, 0.03, y + 0.29, 0.26, y + 0.32, (0.72, 0.52, 0.14))
    _blob(canvas, 0.145, y + 0.13, 0.045, 0.06, (0.93, 0.76, 0.62))
    _blob(canvas, 0.145, y + 0.085, 0.048, 0.03, (0.2, 0.12, 0.08))
    _box(canvas, 0.73, 0.06, 1.02, 0.90, WOOD)
    books = (
        (0.80, 0.15, 0.15),
        (0.15, 0.35, 0.70),
        (0.95, 0.80, 0.25),
        (0.15, 0.50, 0.30),
        (0.9, 0.9, 0.85),
    )
    for shelf in range(4):
        top = 0.10 + 0.20 * shelf
        _box(canvas, 0.755, top, 1.02, top + 0.165, (0.22, 0.13, 0.07))
        for place in range(5):
            left = 0.76 + 0.048 * place
            height = 0.10 + 0.06 * ((3 * shelf + 2 * place) % 4) / 3
            foot, colour = top + 0.165, books[(2 * shelf + place) % 5]
            _box(canvas, left, foot - height, left + 0.04, foot, colour)


def beach(canvas: Canvas, detail: np.ndarray, sunset: np.ndarray) -> None:
    _sky(canvas, sunset)
    _blob(canvas, 0.80, 0.14 + 0.1 * detail[:, 0], 0.075, 0.075, (1.0, 0.95, 0.55))
    horizon = 0.46 + 0.06 * detail[:, 1]
    _ground(canvas, horizon, (0.05, 0.42, 0.66))
    _ground(canvas, horizon + 0.16, (0.35, 0.75, 0.82))
    _ground(canvas, horizon + 0.20, (0.97, 0.89, 0.68))
    frame = canvas.frame
    x = 0.86 + 0.05 * (detail[:, 2] - 0.5)  # a sailing boat
    sail = shapes.peak(frame, x, horizon - 0.2, 0.45)
    canvas.paint(frame, np.maximum(sail, frame.v - per_picture(horizon)), (0.99, 0.99, 0.97))
    _box(canvas, x - 0.09, horizon + 0.01, x + 0.09, horizon + 0.05, (0.55, 0.20, 0.10))
    x = 0.13 + 0.04 * (detail[:, 3] - 0.5)  # a red umbrella with white stripes
    _line(canvas, x, 0.3, x, 0.92, 0.012, (0.9, 0.9, 0.9))
    for part, rows in canvas.parts(window=(x, 0.30, 0.21, 0.16)):
        centre = x[rows]
        dome = shapes.ellipse(part.frame, centre, 0.40, 0.20, 0.22)
        dome = np.maximum(dome, part.frame.v - np.float32(0.40))
        part.paint(part.frame, dome, (0.88, 0.14, 0.14))
        stripes = np.abs(part.frame.u - per_picture(centre)) - np.float32(0.09)
        stripes = np.maximum(dome, shapes.ring(stripes, 0.03))
        part.paint(part.frame, stripes, (0.98, 0.98, 0.98))


def forest(canvas: Canvas, detail: np.ndarray, sunset: np.ndarray) -> None:
    x: Value
    del sunset
    _gradient(canvas, (0.05, 0.22, 0.09), (0.20, 0.42, 0.16))
    for place, x in enumerate((0.30, 0.68, 0.16, 0.86, 0.02, 0.52, 0.97)):
        x = x + 0.05 * (detail[:, place] - 0.5)
        near = place in (2, 3, 4, 6)
        half = 0.038 if near else 0.022
        colour = (0.33, 0.20, 0.10) if near else (0.20, 0.20, 0.10)
        _box(canvas, x - half, -0.05, x + half, 0.86 if near else 0.76, colour)
    for place, (x, y) in enumerate(
        ((0.08, 0.02), (0.34, -0.01), (0.62, 0.0), (0.90, 0.03), (0.2, 0.0), (0.77, -0.02))
    ):
        colour = (0.14, 0.50, 0.16) if place < 4 else (0.24, 0.62, 0.20)
        _blob(canvas, x + 0.06 * (detail[:, place] - 0.5), y, 0.17, 0.14, colour)
    _ground(canvas, 0.84, (0.30, 0.32, 0.10))
    for x in (0.10, 0.90):  # mushrooms
        x = x + 0.1 * (detail[:, 8] - 0.5)
        _box(canvas, x - 0.02, 0.78, x + 0.02, 0.87, (0.95, 0.92, 0.84))
        _blob(canvas, x, 0.78, 0.06, 0.04, (0.85, 0.12, 0.10))


def snowy_night(canvas: Canvas, detail: np.ndarray, sunset: np.ndarray) -> None:
    x: Value
    del sunset
    _gradient(canvas, (0.03, 0.05, 0.20), (0.14, 0.20, 0.42), 0.8)
    _blob(canvas, 0.14, 0.15 + 0.05 * detail[:, 0], 0.075, 0.075, (0.98, 0.97, 0.85))
    _ground(canvas, 0.70, (0.88, 0.92, 0.99))
    frame = canvas.frame
    for place, x in enumerate((0.06, 0.24, 0.72)):
        x = x + 0.05 * (detail[:, 1 + place] - 0.5)
        for top in (0.36, 0.45, 0.54):
            tree = shapes.peak(frame, x, top, 0.55)
            tree = np.maximum(tree, frame.v - np.float32(top + 0.17))
            canvas.paint(frame, tree, (0.06, 0.26, 0.22))
            snow = np.maximum(tree, frame.v - np.float32(top + 0.06))
            canvas.paint(frame, snow, (0.93, 0.96, 1.0))
    _box(canvas, 0.79, 0.52, 1.02, 0.78, (0.42, 0.22, 0.14))  # a house with a lit window
    roof = np.maximum(shapes.peak(frame, 0.905, 0.34, 0.9), frame.v - np.float32(0.53))
    canvas.paint(frame, roof, (0.95, 0.97, 1.0))
    _box(canvas, 0.85, 0.57, 0.96, 0.67, (1.0, 0.85, 0.35))
    _stars(canvas, 26, (1.0, 1.0, 1.0), 0.011, seed=5)


def park(canvas: Canvas, detail: np.ndarray, sunset: np.ndarray) -> None:
    x: Value
    _sky(canvas, sunset)
    horizon = 0.58 + 0.05 * detail[:, 0]
    _ground(canvas, horizon, (0.42, 0.74, 0.28))
    for place, x in enumerate((0.10, 0.90, 0.68)):
        x = x + 0.06 * (detail[:, 1 + place] - 0.5)
        _box(canvas, x - 0.022, 0.38, x + 0.022, horizon + 0.06, TRUNK)
        _blob(canvas, x, 0.30, 0.15, 0.17, (0.16, 0.52, 0.18))
        _blob(canvas, x - 0.03, 0.26, 0.09, 0.09, (0.26, 0.64, 0.24))
    left = 0.02 + 0.04 * detail[:, 4]  # a red bench
    for top in (0.64, 0.71, 0.78):
        _box(canvas, left, top, left + 0.28, top + 0.045, (0.80, 0.12, 0.12))
    for across in (0.03, 0.23):
        _box(canvas, left + across, 0.66, left + across + 0.025, 0.90, (0.2, 0.2, 0.2))
    for place, x in enumerate((0.76, 0.84, 0.92, 0.98)):  # flowers
        colour = ((1.0, 0.85, 0.2), (1.0, 0.45, 0.7))[place % 2]
        _blob(canvas, x, 0.76 + 0.1 * detail[:, 5 + place], 0.025, 0.025, colour)


def space(canvas: Canvas, detail: np.ndarray, sunset: np.ndarray) -> None:
    del sunset
    _gradient(canvas, (0.01, 0.01, 0.04), (0.05, 0.02, 0.12))
    _stars(canvas, 34, (1.0, 1.0, 0.92), 0.010, seed=7)
    x, y = 0.82 + 0.04 * (detail[:, 0] - 0.5), 0.22 + 0.08 * (detail[:, 1] - 0.5)
    _blob(canvas, x, y, 0.17, 0.045, (0.92, 0.80, 0.55))  # a planet with a ring
    _blob(canvas, x, y, 0.13, 0.028, (0.03, 0.02, 0.08))
    _blob(canvas, x, y, 0.095, 0.095, (0.85, 0.48, 0.22))
    for part, rows in canvas.parts(window=(x, y, 0.18, 0.06)):
        band = shapes.ring(shapes.ellipse(part.frame, x[rows], y[rows], 0.15, 0.037), 0.009)
        front = per_picture(y[rows]) - part.frame.v
        part.paint(part.frame, np.maximum(band, front), (0.92, 0.80, 0.55))
    earth = 0.13 + 0.08 * (detail[:, 2] - 0.5)
    _blob(canvas, earth, 0.80, 0.24, 0.24, (0.12, 0.38, 0.85))
    for across, down, wide, high in (
        (-0.08, -0.08, 0.07, 0.05),
        (0.07, 0.02, 0.06, 0.08),
        (-0.06, 0.1, 0.09, 0.04),
    ):
        _blob(canvas, earth + across, 0.80 + down, wide, high, (0.20, 0.60, 0.28))


def stage(canvas: Canvas, detail: np.ndarray, sunset: np.ndarray) -> None:
    del sunset
    frame = canvas.frame
    _gradient(canvas, (0.20, 0.10, 0.10), (0.42, 0.26, 0.20))
    for edge in (0, 1):
        inner = per_picture(0.27 + 0.06 * detail[:, 0])
        cloth = (frame.u if edge == 0 else 1 - frame.u) - inner + 0 * frame.v
        canvas.paint(frame, cloth, (0.66, 0.05, 0.10))
        folds = (np.float32(0.5) - shapes.wave(frame.u * 11)) * 0.04
        canvas.paint(frame, np.maximum(cloth, folds), (0.44, 0.02, 0.07))
    _ground(canvas, 0.84, (0.62, 0.40, 0.20))
    _box(canvas, -0.05, -0.05, 1.05, 0.07, (0.80, 0.62, 0.18))
    x = 0.86 + 0.06 * (detail[:, 1] - 0.5)  # a microphone on its stand
    _line(canvas, x, 0.40, x, 0.92, 0.012, (0.12, 0.12, 0.13))
    _line(canvas, x - 0.07, 0.93, x + 0.07, 0.93, 0.015, (0.12, 0.12, 0.13))
    _blob(canvas, x, 0.36, 0.045, 0.06, (0.75, 0.76, 0.80))


PAINTERS = {
    "mountains": mountains,
    "city": city,
    "desert": desert,
    "room": room,
    "beach": beach,
    "forest": forest,
    "snowy night": snowy_night,
    "park": park,
    "space": space,
    "stage": stage,
}
