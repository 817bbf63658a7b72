"""Neck, torso, arms and legs in their clothes. Body coordinates as in pose.py."""

import numpy as np

from data_pipeline.drawing import shapes
from data_pipeline.drawing.canvas import Canvas
from data_pipeline.drawing.identities import Identities
from data_pipeline.drawing.pictures import CLOTHES, PALETTE, POSES, Pictures
from data_pipeline.drawing.pose import HIPS, KNEES, Pose
from data_pipeline.drawing.shapes import Space, Value, per_picture

SHIRT, SUIT, DRESS, SPACE_SUIT, CLOAK, SWEATER = range(len(CLOTHES))
DOWN, ON_HIPS, WAVING, PHONE = range(len(POSES))
TIES = np.array([(0.80, 0.08, 0.10), (0.10, 0.22, 0.66), (0.07, 0.40, 0.20), (0.10, 0.10, 0.12)])
TROUSERS = np.array([(0.16, 0.20, 0.36), (0.30, 0.29, 0.30), (0.40, 0.30, 0.20)])
SKIRT_END, CLOAK_END = 5.3, 6.2


def darker(colour: Value, factor: float = 0.62) -> np.ndarray:
    return np.asarray(colour) * factor


def paint_body(canvas: Canvas, people: Identities, pictures: Pictures, pose: Pose) -> None:
    """Draw everything below the head, over the hair that hangs behind it."""
    clothes, cloth = pictures.clothes, PALETTE[pictures.clothes_colour]
    paint_legs(canvas, people, pictures, pose)
    space = canvas.space(pose.x, pose.y, pose.unit)
    bare = clothes == DRESS
    # An edge keeps dark clothes visible against a dark scene and white ones against a white wall.
    edge = np.where(cloth.mean(1, keepdims=True) < 0.25, cloth + 0.2, darker(cloth, 0.6))

    half = people.build + 0.22
    shoulder_y = np.where(bare, 1.62, 1.42)
    torso = _torso(space, half, 0.62 + 0.3 * people.build, shoulder_y)
    # The collar decides how much skin shows; under a sweater's there is none.
    depth = np.where(clothes == SWEATER, 1.1, np.where(bare, 1.5, 1.35))
    neck = shapes.capsule(space, 0.35 * pose.shift, 0.55, 0, depth, 0.36 + 0.07 * people.build)
    skin = people.skin_rgb
    if bare.any():
        for part, rows in canvas.parts(bare):
            local = part.space(pose.x[rows], pose.y[rows], pose.unit[rows])
            chest = _torso(local, half[rows] - 0.05, 0.9, np.full(len(rows), 1.45))
            part.paint(local, chest, darker(skin[rows], 0.95))
    canvas.paint(space, torso - np.float32(0.05), edge)
    canvas.paint(space, torso, cloth)
    paint_drapes(canvas, people, pictures, pose)
    canvas.paint(space, neck, darker(skin, 0.82))
    for kind, painter in FRONTS.items():
        for part, rows in canvas.parts(clothes == kind, _chest_window(pose)):
            local = part.space(pose.x[rows], pose.y[rows], pose.unit[rows])
            painter(part, local, cloth[rows], pictures.take(rows), people.build[rows])
    paint_arms(canvas, people, pictures, pose, cloth, edge)


def _chest_window(pose: Pose):
    return pose.x, pose.y + 2.75 * pose.unit, 2.0 * pose.unit, 1.95 * pose.unit


def _torso(space, shoulders, hips, top):
    """Half widths at the shoulders and the hips; sloping shoulders from ``top`` down."""
    shoulders, hips, top = map(per_picture, (shoulders, hips, top))
    across = np.abs(space.u)
    depth = np.minimum(np.maximum((space.v - 1.4) / (HIPS - 1.4), 0), 1)
    sides = across - (shoulders + (hips - shoulders) * depth)
    slope = top + np.float32(0.26) * np.square(across / shoulders) - space.v
    return np.maximum(np.maximum(sides, slope), space.v - np.float32(HIPS + 0.25))


def paint_legs(canvas: Canvas, people: Identities, pictures: Pictures, pose: Pose) -> None:
    low = pose.y + HIPS * pose.unit < 1.05
    for part, rows in canvas.parts(low):
        p = pose.take(rows)
        space = part.space(p.x, p.y, p.unit)
        clothes = pictures.clothes[rows]
        cloth = PALETTE[pictures.clothes_colour[rows]]
        legs = TROUSERS[pictures.trousers[rows]]
        legs = np.where(np.isin(clothes, (SUIT, SPACE_SUIT))[:, None], cloth, legs)
        legs = np.where((clothes == DRESS)[:, None], people.skin_rgb[rows], legs)
        for side in (0, 1):
            (hx, hy), (kx, ky), (ax, ay) = (p.joints[:, i + side].T for i in (6, 8, 10))
            upper = shapes.capsule(space, hx * 0.9, hy, kx, ky, 0.48, 0.36)
            lower = shapes.capsule(space, kx, ky, ax, ay, 0.36, 0.27)
            leg = np.minimum(upper, lower)
            part.paint(space, leg - np.float32(0.05), darker(legs, 0.6))
            part.paint(space, leg, legs)
            shoe = shapes.capsule(space, ax, ay + 0.22, ax * 1.15, ay + 0.25, 0.26)
            part.paint(space, shoe, (0.12, 0.10, 0.10))


def paint_arms(
    canvas: Canvas,
    people: Identities,
    pictures: Pictures,
    pose: Pose,
    cloth: np.ndarray,
    edge: np.ndarray,
) -> None:
    clothes = pictures.clothes
    covered = clothes == CLOAK
    for side in (0, 1):
        points = pose.joints[:, [side, 2 + side, 4 + side]]
        sign = 1 if side == 0 else -1
        raised = (pictures.pose >= WAVING) & (pictures.pose_side == sign)
        # Under a cloak only a raised arm is visible.
        for part, rows in canvas.parts(~covered | raised, _arm_window(pose, points)):
            p = pose.take(rows)
            space = part.space(p.x, p.y, p.unit)
            (sx, sy), (ex, ey), (wx, wy) = points[rows].transpose(1, 2, 0)
            # A little below the joint: sleeves, not puffs.
            upper = shapes.capsule(space, 0.96 * sx, sy + 0.14, ex, ey, 0.34, 0.30)
            lower = shapes.capsule(space, ex, ey, wx, wy, 0.29, 0.22)
            skin = people.skin_rgb[rows]
            bare_upper = (clothes[rows] == DRESS)[:, None]
            bare_lower = np.isin(clothes[rows], (SHIRT, DRESS))[:, None]
            upper_colour = np.where(bare_upper, skin, cloth[rows])
            lower_colour = np.where(bare_lower, skin, cloth[rows])
            outline = np.minimum(upper, lower) - np.float32(0.05)
            part.paint(space, outline, np.where(bare_upper, darker(skin, 0.7), edge[rows]))
            part.paint(space, lower, lower_colour)
            part.paint(space, upper, upper_colour)
            reach = np.maximum(np.hypot(wx - ex, wy - ey), 1e-6)
            hx, hy = wx + 0.24 * (wx - ex) / reach, wy + 0.24 * (wy - ey) / reach
            hand = shapes.circle(space, hx, hy, 0.27)
            glove = (clothes[rows] == SPACE_SUIT)[:, None]
            part.paint(space, hand - np.float32(0.05), darker(skin, 0.6))
            part.paint(space, hand, np.where(glove, (0.75, 0.76, 0.80), skin))


def _arm_window(pose, points):
    low, high = points.min(1), points.max(1)
    middle, half = (low + high) / 2, (high - low) / 2 + 0.62  # thickness, hand and outline
    unit = pose.unit
    return (
        *(pose.x + middle[:, 0] * unit, pose.y + middle[:, 1] * unit),
        *(half[:, 0] * unit, half[:, 1] * unit),
    )


def paint_phone(canvas: Canvas, people: Identities, pictures: Pictures, pose: Pose) -> None:
    """The phone next to the jaw with the hand around it, in front of hair and hat."""
    hand_x = pictures.pose_side * (people.face_width + 0.20)
    reach = 0.8 * pose.unit
    window = (pose.x + hand_x * pose.unit, pose.y + 0.4 * pose.unit, reach, reach)
    for part, rows in canvas.parts(pictures.pose == PHONE, window):
        p = pose.take(rows)
        space = part.space(p.x, p.y, p.unit)
        x, side = hand_x[rows], pictures.pose_side[rows]
        skin = people.skin_rgb[rows]
        glove = (pictures.clothes[rows] == SPACE_SUIT)[:, None]
        skin = np.where(glove, (0.75, 0.76, 0.80), skin)
        phone = shapes.capsule(space, x - 0.06 * side, -0.1, x - 0.1 * side, 0.6, 0.10)
        part.paint(space, phone - np.float32(0.04), (0.9, 0.9, 0.92))
        part.paint(space, phone, (0.05, 0.05, 0.07))
        hand = shapes.capsule(space, x + 0.06 * side, 0.34, x + 0.02 * side, 0.5, 0.21)
        part.paint(space, hand - np.float32(0.05), darker(skin, 0.6))
        part.paint(space, hand, skin)


def shirt(
    canvas: Canvas, space: Space, cloth: np.ndarray, pictures: Pictures, build: np.ndarray
) -> None:
    del build, pictures
    line = np.where(cloth.mean(1, keepdims=True) > 0.5, darker(cloth, 0.6), cloth * 0.5 + 0.45)
    canvas.paint(space, _collar(space, 1.45, 0.62), line)
    canvas.paint(space, shapes.box(space, 0, 3.0, 0.035, 1.35), line)
    for height in (1.95, 2.45, 2.95):
        canvas.paint(space, shapes.circle(space, 0.13, height, 0.07), line)


def _collar(space, top, spread):
    """Two flaps pointing down at the neck's sides."""
    across = np.abs(space.u)
    band = np.abs(space.v - top - across * np.float32(-0.5) - np.float32(0.25)) - np.float32(0.14)
    return np.maximum(band, across - np.float32(spread))


def suit(
    canvas: Canvas, space: Space, cloth: np.ndarray, pictures: Pictures, build: np.ndarray
) -> None:
    del build
    white = pictures.clothes_colour == len(PALETTE) - 1
    lapel = np.where(cloth.mean(1, keepdims=True) < 0.25, cloth + 0.17, darker(cloth, 0.72))
    across = np.abs(space.u)
    opening = (across - (np.float32(2.75) - space.v) * np.float32(0.42)) * np.float32(0.9)
    opening = np.maximum(opening, np.float32(1.42) - space.v)
    canvas.paint(space, opening - np.float32(0.16), lapel)
    front = np.where(white[:, None], (0.62, 0.72, 0.88), (0.97, 0.97, 0.97))
    canvas.paint(space, opening, front)
    tie = TIES[pictures.accent]
    same = np.abs(tie - cloth).sum(1) < 0.5
    tie = np.where(same[:, None], TIES[(pictures.accent + 1) % 4], tie)
    canvas.paint(space, shapes.capsule(space, 0, 1.62, 0, 2.5, 0.10, 0.17), tie)


def dress(
    canvas: Canvas, space: Space, cloth: np.ndarray, pictures: Pictures, build: np.ndarray
) -> None:
    del pictures
    # The neckline is skin above it (drawn before), so only the straps are missing.
    for side in (-1, 1):
        strap = shapes.capsule(space, side * 0.55 * build, 1.45, side * 0.55 * build, 2.0, 0.10)
        canvas.paint(space, strap, cloth)
    light = cloth * 0.5 + 0.5
    light = np.where(cloth.mean(1, keepdims=True) > 0.8, (0.75, 0.70, 0.85), light)
    for place in range(-2, 3):
        dot_y = 2.15 + 0.05 * place * place
        canvas.paint(space, shapes.circle(space, 0.34 * place, dot_y, 0.085), light)
    canvas.paint(space, shapes.box(space, 0, 3.35, 1.0, 0.09), light)


def space_suit(
    canvas: Canvas, space: Space, cloth: np.ndarray, pictures: Pictures, build: np.ndarray
) -> None:
    del pictures
    metal, dark = (0.72, 0.74, 0.80), (0.30, 0.32, 0.38)
    canvas.paint(space, shapes.ellipse(space, 0, 1.50, 0.98, 0.34), dark)
    canvas.paint(space, shapes.ellipse(space, 0, 1.45, 0.90, 0.27), metal)
    canvas.paint(space, shapes.ellipse(space, 0, 1.36, 0.62, 0.16), dark)
    panel = np.where(cloth.mean(1, keepdims=True) > 0.6, (0.55, 0.58, 0.66), (0.86, 0.87, 0.90))
    canvas.paint(space, shapes.round_box(space, 0, 2.32, 0.55, 0.34, 0.1), panel)
    for x, colour in ((-0.3, (0.9, 0.1, 0.1)), (0.0, (0.1, 0.75, 0.2)), (0.3, (0.15, 0.35, 0.95))):
        canvas.paint(space, shapes.circle(space, x, 2.28, 0.12), colour)
    for side in (-1, 1):
        hose = shapes.capsule(space, side * 0.80 * build, 1.9, side * 0.72 * build, 3.4, 0.09)
        canvas.paint(space, hose, dark)


def cloak(
    canvas: Canvas, space: Space, cloth: np.ndarray, pictures: Pictures, build: np.ndarray
) -> None:
    """The collar and the clasp; paint_cloak draws the wide shape itself."""
    del pictures, build
    rim = np.where(cloth.mean(1, keepdims=True) < 0.3, cloth + 0.22, darker(cloth, 0.6))
    stand = shapes.capsule(space, -0.62, 1.2, 0, 1.95, 0.16)
    stand = np.minimum(stand, shapes.capsule(space, 0.62, 1.2, 0, 1.95, 0.16))
    canvas.paint(space, stand, rim)
    canvas.paint(space, shapes.circle(space, 0, 1.93, 0.16), (0.95, 0.78, 0.22))


def sweater(
    canvas: Canvas, space: Space, cloth: np.ndarray, pictures: Pictures, build: np.ndarray
) -> None:
    del pictures, build
    dark = cloth.mean(1, keepdims=True) < 0.3
    knit = np.where(dark, cloth + 0.16, darker(cloth, 0.78))
    canvas.paint(space, shapes.round_box(space, 0, 1.42, 0.62, 0.24, 0.2), knit)
    rib = np.maximum(np.abs(space.u) - np.float32(0.95), np.abs(space.v - 2.4) - 0.42)
    zigzag = np.abs(shapes.wave(space.u * 1.6) * 0.3 + 2.2 - space.v) - np.float32(0.08)
    canvas.paint(space, np.maximum(rib, zigzag), knit)
    canvas.paint(space, np.maximum(rib, np.abs(space.v - 2.75) - np.float32(0.06)), knit)


def paint_drapes(canvas: Canvas, people: Identities, pictures: Pictures, pose: Pose) -> None:
    """What is wider than a torso: a cloak over the arms, a dress's skirt over the legs."""
    cloth = PALETTE[pictures.clothes_colour]
    edge = np.where(cloth.mean(1, keepdims=True) < 0.25, cloth + 0.2, darker(cloth, 0.6))
    shoulders = people.build + 0.34
    for kind, top, end, start, growth in (
        (CLOAK, 1.38, CLOAK_END, shoulders, 0.16),
        (DRESS, 3.2, SKIRT_END, 0.35 + 0.35 * people.build, 0.42),
    ):
        mask = pictures.clothes == kind
        if kind == DRESS:
            mask &= pose.y + 3.2 * pose.unit < 1.02
        for part, rows in canvas.parts(mask):
            space = part.space(pose.x[rows], pose.y[rows], pose.unit[rows])
            across, half = np.abs(space.u), per_picture(start[rows])
            sides = (across - half - (space.v - np.float32(top)) * np.float32(growth)) * 0.95
            slope = np.float32(top) + np.float32(0.35) * np.square(across / half) - space.v
            slope = slope if kind == CLOAK else np.float32(top) - space.v
            shape = np.maximum(np.maximum(sides, slope), space.v - np.float32(end))
            part.paint(space, shape - np.float32(0.05), edge[rows])
            part.paint(space, shape, cloth[rows])
            if kind == CLOAK:  # its two halves part below the clasp
                seam = across - (space.v - np.float32(1.9)) * np.float32(0.10) - np.float32(0.03)
                seam = np.maximum(np.maximum(seam, np.float32(1.9) - space.v), shape)
                part.paint(space, seam, darker(cloth[rows], 0.45))


FRONTS = {
    SHIRT: shirt,
    SUIT: suit,
    DRESS: dress,
    SPACE_SUIT: space_suit,
    CLOAK: cloak,
    SWEATER: sweater,
}


def occluded(pictures: Pictures) -> np.ndarray:
    """[n, 12] bool: joints that clothes hide so well that nobody could locate them."""
    hidden = np.zeros((len(pictures), 12), bool)
    cloak_on = pictures.clothes == CLOAK
    for side, sign in ((0, 1), (1, -1)):
        raised = (pictures.pose >= WAVING) & (pictures.pose_side == sign)
        hidden[:, 2 + side] = hidden[:, 4 + side] = cloak_on & ~raised
        hidden[:, 6 + side] = cloak_on
        hidden[:, 8 + side] = cloak_on & (KNEES < CLOAK_END)
    return hidden
