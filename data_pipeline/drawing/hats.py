"""Hats, tilted with the head, over the hair. Head coordinates as in pose.py."""

import numpy as np

from data_pipeline.drawing import shapes
from data_pipeline.drawing.canvas import Canvas
from data_pipeline.drawing.identities import Identities
from data_pipeline.drawing.pictures import HATS, PALETTE, Pictures
from data_pipeline.drawing.pose import Pose
from data_pipeline.drawing.shapes import Space

EDGE = np.float32(0.04)  # a darker rim separates a hat from the background


def paint_hat(canvas: Canvas, people: Identities, pictures: Pictures, pose: Pose) -> None:
    sin, cos = np.sin(pose.tilt), np.cos(pose.tilt)
    window = (
        *(pose.x + 1.1 * sin * pose.unit, pose.y - 1.1 * cos * pose.unit),
        *(1.9 * pose.unit, 1.45 * pose.unit),
    )
    for kind, painter in PAINTERS.items():
        for part, rows in canvas.parts(pictures.hat == HATS.index(kind), window):
            p = pose.take(rows)
            space = part.space(p.x, p.y, p.unit, p.tilt)
            colour = PALETTE[pictures.hat_colour[rows]]
            black = colour.mean(1, keepdims=True) < 0.25
            dark = np.where(black, colour + 0.2, colour * 0.6)
            half = people.face_width[rows] + 0.12
            painter(part, space, half, colour, dark, pictures.turn[rows])


def _fill(canvas, space, shape, colour, dark):
    canvas.paint(space, shape - EDGE, dark)
    canvas.paint(space, shape, colour)


def hat(
    canvas: Canvas,
    space: Space,
    half: np.ndarray,
    colour: np.ndarray,
    dark: np.ndarray,
    turn: np.ndarray,
) -> None:
    """A rounded crown in a wide brim."""
    del turn
    crown = shapes.round_box(space, 0, -1.0, half - 0.08, 0.46, 0.28)
    _fill(canvas, space, crown, colour, dark)
    canvas.paint(space, shapes.box(space, 0, -0.76, half - 0.06, 0.08), dark)
    _fill(canvas, space, shapes.ellipse(space, 0, -0.62, half * 1.55, 0.17), colour, dark)


def top_hat(
    canvas: Canvas,
    space: Space,
    half: np.ndarray,
    colour: np.ndarray,
    dark: np.ndarray,
    turn: np.ndarray,
) -> None:
    del turn
    _fill(canvas, space, shapes.box(space, 0, -1.25, half - 0.12, 0.66), colour, dark)
    canvas.paint(space, shapes.box(space, 0, -0.82, half - 0.10, 0.10), dark)
    brim = shapes.round_box(space, 0, -0.64, half * 1.25, 0.09, 0.09)
    _fill(canvas, space, brim, colour, dark)


def cap(
    canvas: Canvas,
    space: Space,
    half: np.ndarray,
    colour: np.ndarray,
    dark: np.ndarray,
    turn: np.ndarray,
) -> None:
    dome = shapes.ellipse(space, 0, -0.58, half, 0.72)
    dome = np.maximum(dome, space.v + np.float32(0.55))
    _fill(canvas, space, dome, colour, dark)
    side = np.where(turn < 0, -1, 1)  # the peak points in the direction of the face
    peak = shapes.capsule(space, 0, -0.55, side * (half + 0.42), -0.46, 0.11, 0.07)
    canvas.paint(space, peak, dark)


def beanie(
    canvas: Canvas,
    space: Space,
    half: np.ndarray,
    colour: np.ndarray,
    dark: np.ndarray,
    turn: np.ndarray,
) -> None:
    del turn
    dome = shapes.ellipse(space, 0, -0.60, half, 0.78)
    dome = np.maximum(dome, space.v + np.float32(0.58))
    _fill(canvas, space, dome, colour, dark)
    canvas.paint(space, shapes.round_box(space, 0, -0.58, half + 0.02, 0.14, 0.1), dark)
    canvas.paint(space, shapes.circle(space, 0, -1.42, 0.20), (0.96, 0.96, 0.96))


PAINTERS = {"hat": hat, "top hat": top_hat, "cap": cap, "beanie": beanie}
