"""Eyes, brows, nose, mouth, marks and glasses. Head coordinates as in pose.py.

These few pixels carry the identity, so each of them has its own small window.
"""

import numpy as np
from scipy.ndimage import uniform_filter

from data_pipeline.drawing import shapes
from data_pipeline.drawing.canvas import Canvas
from data_pipeline.drawing.faults import Faults
from data_pipeline.drawing.identities import (
    EYE_COLOURS,
    FRAME_COLOURS,
    LIP_COLOURS,
    Identities,
)
from data_pipeline.drawing.pictures import Pictures
from data_pipeline.drawing.pose import CORNER, Pose
from data_pipeline.drawing.shapes import per_picture


def paint_features(
    canvas: Canvas,
    people: Identities,
    pictures: Pictures,
    pose: Pose,
    faults: Faults | None = None,
) -> None:
    """The inner face; ``faults`` spoils parts, but not the glasses over them."""
    paint_marks(canvas, people, pose)
    paint_nose(canvas, people, pose)
    if faults is None:
        _paint_parts(canvas, people, pictures, pose, np.ones((len(people), 5), bool))
    else:
        # The smeared parts first, or a smeared eye would take the brow over it along.
        _paint_parts(canvas, people, pictures, pose, faults.smeared)
        _smear(canvas, pose, faults.smeared)
        whole = ~(faults.missing | faults.smeared)
        _paint_parts(canvas, people, pictures, faults.moved(pose), whole)
    paint_glasses(canvas, people, pose)


def _paint_parts(canvas, people, pictures, pose, masks):
    """Those parts of faults.PARTS, in its order, that ``masks`` [n, 5] has."""
    paint_mouth(canvas, people, pose, masks[:, 4])
    for side in (0, 1):
        paint_eye(canvas, people, pictures, pose, side, masks[:, side])
        paint_brow(canvas, people, pose, side, masks[:, 2 + side])


SMEARED = ((0.38, 0.32),) * 2 + ((0.4, 0.2),) * 2 + ((0.55, 0.38),)  # half sizes, as PARTS


def _smear(canvas: Canvas, pose: Pose, smeared: np.ndarray) -> None:
    """Blur parts until only a spot of their mean colour is left; ``canvas`` has whole frames."""
    centres = np.concatenate([pose.eyes, pose.brows, pose.mouth[:, None]], axis=1)
    middles = pose.to_frame(centres) * canvas.size
    for row, k in np.argwhere(smeared):
        unit = pose.unit[row] * canvas.size
        halves = np.ceil(unit * np.array(SMEARED[k])).astype(int)
        low, high = (np.round(middles[row, k] + sign * halves).astype(int) for sign in (-1, 1))
        (x0, y0), (x1, y1) = np.clip(low, 0, canvas.size), np.clip(high, 0, canvas.size)
        if x0 < x1 and y0 < y1:
            window = canvas.pixels[row, :, y0:y1, x0:x1]
            blurred, side = window, 2 * halves.min() + 1
            for _ in range(3):
                blurred = uniform_filter(blurred, (1, side, side), mode="nearest")
            # Fading out: an edge would give the smear away.
            across = (np.arange(x0, x1) + 0.5 - middles[row, k, 0]) / halves[0]
            down = (np.arange(y0, y1) + 0.5 - middles[row, k, 1]) / halves[1]
            alpha = np.clip(2.5 * (1 - np.hypot(across, down[:, None])), 0, 1).astype(np.float32)
            window += alpha * (blurred - window)


def _window(pose: Pose, points, half_width, half_height):
    """Around a point [n, 2] of the head; half sizes in the head's unit."""
    middle = pose.to_frame(points[:, None])[:, 0]
    sin = np.abs(np.sin(pose.tilt))
    wide, high = half_width + sin * half_height, half_height + sin * half_width
    return middle[:, 0], middle[:, 1], wide * pose.unit, high * pose.unit


def _each(canvas, people, pose, mask, window):
    """(canvas, space, rows, people, pose) for images with something to paint."""
    for part, rows in canvas.parts(mask, window):
        p = pose.take(rows)
        yield part, part.space(p.x, p.y, p.unit, p.tilt), rows, people.take(rows), p


def paint_eye(
    canvas: Canvas,
    people: Identities,
    pictures: Pictures,
    pose: Pose,
    side: int,
    mask: np.ndarray | None = None,
) -> None:
    outward = (-1, 1)[side]
    window = _window(pose, pose.eyes[:, side], 0.42, 0.45)
    for part, space, rows, who, p in _each(canvas, people, pose, mask, window):
        x, y = p.eyes[:, side].T
        half = who.eye_width * p.squeeze[:, side]
        height = per_picture(p.eye_opening)
        across = (space.u - per_picture(x)) / per_picture(half)
        down = space.v - per_picture(y)
        # Slanted eyes: the outer corner rises with the distance from the eye's middle.
        down = down + per_picture(outward * who.eye_slant * half) * across
        lens = 1 - np.square(across)
        upper, lower = down + height * lens, down - np.float32(0.8) * height * lens
        opening = np.maximum(-upper, lower)
        skin = who.skin_rgb
        part.paint(space, opening - np.float32(0.05), skin * 0.72)  # the socket
        part.paint(space, opening, (0.97, 0.97, 0.96))
        gaze = 0.35 * half * np.choose(pictures.gaze[rows], [0, -1, 1])
        radius = 0.115 + 0.1 * (who.eye_width - 0.15)
        iris = np.maximum(shapes.circle(space, x + gaze, y, radius), opening)
        part.paint(space, iris, EYE_COLOURS[who.eye_colour])
        pupil = np.maximum(shapes.circle(space, x + gaze, y, 0.05), opening)
        part.paint(space, pupil, (0.03, 0.03, 0.04))
        lid_half = 0.028 + 0.018 * who.lashes
        lid = np.maximum(np.abs(upper) - per_picture(lid_half), np.abs(across) - np.float32(1.05))
        part.paint(space, lid, skin * 0.16)


def paint_brow(
    canvas: Canvas, people: Identities, pose: Pose, side: int, mask: np.ndarray | None = None
) -> None:
    """A bar over the eye, turned about its middle by nature and mood."""
    outward = (-1, 1)[side]
    window = _window(pose, pose.brows[:, side], 0.42, 0.3)
    for part, space, _, who, p in _each(canvas, people, pose, mask, window):
        x, y = p.brows[:, side].T
        half = who.eye_width * p.squeeze[:, side]
        rise, reach = outward * p.brow_angle * half, half * 1.22
        brow = shapes.capsule(space, x - reach, y + rise, x + reach, y - rise, who.brow_thickness)
        grey = who.hair_rgb * 0.55 + who.skin_rgb * 0.08
        part.paint(space, brow, np.minimum(grey, who.skin_rgb * 0.6))


def paint_nose(canvas: Canvas, people: Identities, pose: Pose) -> None:
    middle = np.stack([pose.nose[:, 0], pose.nose[:, 1] - 0.15], axis=1)
    window = _window(pose, middle, 0.5, 0.45)
    for part, space, _, who, p in _each(canvas, people, pose, None, window):
        x, y = p.nose.T
        skin = who.skin_rgb
        bridge_x = 0.75 * x
        top = y - 0.62 * who.nose_length
        # The shaded side of the bridge, the ball, and the nostrils as a darker base.
        ridge = shapes.capsule(space, bridge_x, top, x, y, 0.035, 0.5 * who.nose_width)
        part.paint(space, ridge, skin * 0.84)
        part.paint(space, shapes.ellipse(space, x, y, who.nose_width, 0.085), skin * 0.78)
        for side in (-1, 1):
            nostril = shapes.ellipse(space, x + side * 0.6 * who.nose_width, y + 0.045, 0.05, 0.04)
            part.paint(space, nostril, skin * 0.36)


def paint_mouth(
    canvas: Canvas, people: Identities, pose: Pose, mask: np.ndarray | None = None
) -> None:
    window = _window(pose, pose.mouth, 0.62, 0.5)
    for part, space, _, who, p in _each(canvas, people, pose, mask, window):
        x, y = p.mouth.T
        t = (space.u - per_picture(x)) / per_picture(p.mouth_width)
        lens = 1 - np.square(t)
        # The mouth's line, a parabola: the corners rise by CORNER of the curve, the middle sinks.
        curve = per_picture(p.mouth_curve)
        line = space.v - per_picture(y) + curve * (np.float32(CORNER) - lens)
        full, opening = per_picture(who.mouth_fullness), per_picture(p.mouth_opening)
        above = line + (full + np.float32(0.3) * opening) * lens
        below = line - (np.float32(1.25) * full + opening) * lens
        lips = LIP_COLOURS[who.lip_colour] * (0.45 + 0.55 * who.skin_rgb.max(1, keepdims=True))
        # Otherwise thin lips would fade out beyond the corners instead of ending there.
        ends = (np.abs(t) - 1) * per_picture(p.mouth_width)
        part.paint(space, np.maximum(np.maximum(-above, below), ends), lips)
        inner_top = line + np.float32(0.3) * opening * lens
        inner = np.maximum(-inner_top, line - opening * lens)
        open_ = (p.mouth_opening > 0).astype(float)
        part.paint(space, inner, (0.22, 0.04, 0.05), open_)
        laughing = open_ * (p.mouth_curve > 0)
        teeth = np.maximum(inner, inner_top - np.float32(0.55) * opening * lens)
        part.paint(space, teeth, (0.98, 0.97, 0.94), laughing)
        parted = np.maximum(np.abs(line) - np.float32(0.022), ends)
        part.paint(space, parted, lips * 0.35, 1 - open_)


def paint_marks(canvas: Canvas, people: Identities, pose: Pose) -> None:
    """Freckles over the cheeks, a mole, and the folds of old age."""
    cheeks = np.stack([pose.nose[:, 0], pose.nose[:, 1] - 0.1], axis=1)
    for part, space, _, who, p in _each(
        canvas, people, pose, people.freckles > 0, _window(pose, cheeks, 0.75, 0.3)
    ):
        for side in (-1, 1):
            for across, down in ((0.28, -0.06), (0.42, -0.02), (0.34, 0.08), (0.50, 0.09)):
                x = p.nose[:, 0] + side * across * who.face_width / 0.75
                dot = shapes.circle(space, x, p.nose[:, 1] - 0.08 + down, 0.036)
                part.paint(space, dot, who.skin_rgb * (0.62, 0.45, 0.38), who.freckles)
    mole = np.stack([people.mole[:, 0] + pose.shift, people.mole[:, 1] + pose.lift], axis=1)
    for part, space, rows, who, _ in _each(
        canvas, people, pose, people.mole_size > 0, _window(pose, mole, 0.15, 0.15)
    ):
        x, y = mole[rows].T
        dot = shapes.circle(space, x, y, who.mole_size)
        part.paint(space, dot, who.skin_rgb * 0.25)
    for part, space, _, who, p in _each(
        canvas, people, pose, people.age == 3, _window(pose, pose.nose, 0.75, 1.4)
    ):
        fold = who.skin_rgb * 0.70
        for side in (-1, 1):
            x, y = p.nose[:, 0] + side * (who.nose_width + 0.10), p.nose[:, 1]
            crease = shapes.capsule(space, x, y, x + side * 0.10, y + 0.22, 0.022)
            part.paint(space, crease, fold)
        for place in (-0.62, -0.50):
            height = place + p.lift + who.eye_height
            part.paint(space, shapes.box(space, p.shift, height, 0.28, 0.018), fold)


def paint_glasses(canvas: Canvas, people: Identities, pose: Pose) -> None:
    middle = pose.eyes.mean(1)
    for part, space, _, who, p in _each(
        canvas, people, pose, people.glasses > 0, _window(pose, middle, 1.15, 0.4)
    ):
        colour = FRAME_COLOURS[who.frame_colour]
        round_ones = (who.glasses == 1).astype(float)
        (left_x, left_y), (right_x, right_y) = p.eyes.transpose(1, 2, 0)
        # Never so wide that the lenses would meet over the nose.
        radius = np.minimum(0.27, 0.45 * (right_x - left_x))
        for side, x, y in ((-1, left_x, left_y), (1, right_x, right_y)):
            circle = shapes.circle(space, x, y, radius)
            square = shapes.round_box(space, x, y, radius * 1.08, radius * 0.8, 0.06)
            for shape, shown in ((circle, round_ones), (square, 1 - round_ones)):
                part.paint(space, shape, (1.0, 1.0, 1.0), 0.12 * shown)
                part.paint(space, shapes.ring(shape, 0.034), colour, shown)
            temple = side * who.face_width
            part.paint(space, shapes.capsule(space, x + side * radius, y, temple, y, 0.03), colour)
        bridge = shapes.capsule(space, left_x + radius, left_y, right_x - radius, right_y, 0.032)
        part.paint(space, bridge, colour)
