"""Hair, ears, the face's skin and beards. Head coordinates as in pose.py."""

import numpy as np

from data_pipeline.drawing import shapes
from data_pipeline.drawing.canvas import Canvas
from data_pipeline.drawing.identities import BEARDS, HAIR_STYLES, Identities
from data_pipeline.drawing.pictures import Pictures
from data_pipeline.drawing.pose import Pose
from data_pipeline.drawing.shapes import Space, per_picture

# Per hair style: the silhouette (width relative to the face; top; bottom; corner radius), the
# hairline's height over the middle, its drop towards the temples (large: curtains next to the
# face), its slant by the parting, and the depth of curls.
STYLES = {
    "bald": (0.0, 0.0, 0.0, 0.0, -9.0, 0.0, 0.0, 0.0),
    "balding": (0.05, -0.78, 0.30, 0.45, -1.25, 1.15, 0.0, 0.0),
    "short": (0.06, -1.14, 0.15, 0.62, -0.66, 0.42, 0.0, 0.0),
    "side part": (0.09, -1.22, 0.20, 0.60, -0.62, 0.34, 0.26, 0.0),
    "curly": (0.24, -1.42, 0.42, 0.85, -0.62, 0.50, 0.0, 0.10),
    "fringe": (0.10, -1.20, 0.35, 0.62, -0.42, 0.34, 0.0, 0.0),
    "long": (0.20, -1.22, 2.00, 0.70, -0.74, 1.15, 0.16, 0.0),
    "bob": (0.26, -1.22, 0.95, 0.60, -0.46, 0.62, 0.0, 0.0),
    "bun": (0.05, -1.16, 0.10, 0.66, -0.66, 0.50, 0.0, 0.0),
    "ponytail": (0.06, -1.18, 0.10, 0.64, -0.62, 0.46, 0.20, 0.0),
    "mohawk": (-0.38, -1.55, 0.00, 0.22, -0.62, 0.05, 0.0, 0.0),
    "pigtails": (0.08, -1.18, 0.15, 0.64, -0.50, 0.45, 0.0, 0.0),
    "flat top": (0.10, -1.62, 0.10, 0.12, -0.66, 0.45, 0.0, 0.0),
}
STYLE = np.array([STYLES[name] for name in HAIR_STYLES])
BALD, CURLY, BUN, PONYTAIL, PIGTAILS = (
    HAIR_STYLES.index(s) for s in ("bald", "curly", "bun", "ponytail", "pigtails")
)
UNDER_HAT = -1.05  # hats press hair down to here


def face(space: Space, people: Identities, chin: float = 0.0) -> np.ndarray:
    """The face's outline: an ellipse, tapering to the jaw, squarer below the eyes. [n, h, w]"""
    taper = 1 - per_picture(people.taper) * space.v
    p = np.square(space.u / (per_picture(people.face_width) * np.maximum(taper, np.float32(0.3))))
    q = np.square(space.v)
    norm = np.sqrt(p + q)
    square = per_picture(people.chin) * (space.v > 0)
    norm = norm + square * (np.sqrt(np.sqrt(p * p + q * q)) - norm)
    return (norm - 1) * per_picture(people.face_width)


def _hair(space, people, pictures, style):
    """The silhouette of the hair."""
    extra, top, bottom, radius, *_, curl = style.T
    volume = 0.8 + 0.4 * people.hair_volume
    half = people.face_width + extra * volume
    # Some lengths also grow with the volume, so that "long" varies.
    bottom = np.where(bottom > 0.9, bottom * (0.75 + 0.35 * people.hair_volume), bottom)
    hatted = pictures.hat > 0
    top = np.where(hatted, np.maximum(top, UNDER_HAT), top)
    mass = shapes.round_box(
        space, 0, (top + bottom) / 2, half, (bottom - top) / 2, np.minimum(radius, half)
    )
    if (curl > 0).any():
        bumps = shapes.wave(space.u * 2.1 + 0.3) + shapes.wave(space.v * 2.1)
        mass = mass - per_picture(curl) * (bumps - 1)
    return mass


def _hair_window(pose: Pose, below=1.0):
    """A window around all the hair, or down to ``below`` the middle of the face only."""
    reach = (1.95 + below) / 2 + 0.1
    middle = (below - 1.95) / 2 + 0.05
    sin, cos = np.sin(pose.tilt), np.cos(pose.tilt)
    x, y = pose.x - middle * sin * pose.unit, pose.y + middle * cos * pose.unit
    return x, y, 1.75 * pose.unit, (reach + 0.25) * pose.unit


def paint_back_hair(canvas: Canvas, people: Identities, pictures: Pictures, pose: Pose) -> None:
    """Hair behind the head and the shoulders."""
    for part, rows in canvas.parts(people.hair != BALD, _hair_window(pose, 2.1)):
        who, which, p = people.take(rows), pictures.take(rows), pose.take(rows)
        space = part.space(p.x, p.y, p.unit, p.tilt)
        dark = who.hair_rgb * 0.72
        mass = _hair(space, who, which, STYLE[who.hair])
        part.paint(space, mass, dark)
        for kind, painter in ((BUN, _bun), (PONYTAIL, _ponytail), (PIGTAILS, _pigtails)):
            shown = (who.hair == kind) & ((kind != BUN) | (which.hat == 0))
            if shown.any():
                part.paint(space, painter(space, who), who.hair_rgb * 0.85, shown.astype(float))


def _bun(space, people):
    return shapes.circle(space, 0, -1.36, 0.30 + 0.1 * people.hair_volume)


def _ponytail(space, people):
    x, end = people.parting * (people.face_width + 0.05), 0.9 + 0.5 * people.hair_volume
    return shapes.capsule(space, 0.85 * x, -0.5, 1.35 * x, end, 0.28, 0.14)


def _pigtails(space, people):
    x = people.face_width + 0.18
    left = shapes.capsule(space, -x, -0.25, -x * 1.18, 0.95, 0.30, 0.16)
    return np.minimum(left, shapes.capsule(space, x, -0.25, x * 1.18, 0.95, 0.30, 0.16))


def paint_face(canvas: Canvas, people: Identities, pictures: Pictures, pose: Pose) -> None:
    """Ears and skin, shaded by the light's direction, with the beard's area."""
    window = (pose.x, pose.y, 1.28 * pose.unit, 1.28 * pose.unit)
    for part, rows in canvas.parts(window=window):
        who, which, p = people.take(rows), pictures.take(rows), pose.take(rows)
        space = part.space(p.x, p.y, p.unit, p.tilt)
        skin = who.skin_rgb
        turn = which.turn
        for side in (-1, 1):  # the ear on the side the face turns to is hidden
            x = side * (who.face_width * (1 - 0.12 * np.abs(turn)) + 0.03) - 0.12 * turn
            ear = shapes.ellipse(space, x, who.eye_height + 0.15, 0.55 * who.ear_size, who.ear_size)
            part.paint(space, ear, skin * 0.80)
        shape = face(space, who)
        part.paint(space, shape - np.float32(0.035), skin * 0.62)
        part.paint(space, shape, skin)
        shadow = space.u * per_picture(np.cos(which.light_angle))
        shadow = shadow + space.v * per_picture(np.sin(which.light_angle))
        alpha = np.minimum(np.maximum(np.float32(0.25) + shadow, 0), 1)
        alpha *= np.minimum(np.maximum(np.float32(0.5) - shape / space.pixel, 0), 1)
        part.blend(alpha, skin * (0.62, 0.56, 0.54), 2.0 * which.light_strength)
        _beard(part, space, shape, who, p)


def _beard(canvas, space, shape, people, pose):
    kinds = [people.beard == k for k in range(len(BEARDS))]
    if not any(k.any() for k in kinds[1:]):
        return
    colour = people.hair_rgb * 0.9
    mouth_x, mouth_y = pose.mouth.T
    t = (space.u - per_picture(mouth_x)) / per_picture(people.face_width)
    cheeks = per_picture(mouth_y - 0.06) - np.float32(0.75) * np.square(t) - space.v
    full = np.maximum(shape - np.float32(0.05), cheeks)
    canvas.paint(space, full, colour, kinds[3].astype(float))
    goatee = shapes.ellipse(space, mouth_x, mouth_y + 0.22, 0.30, 0.30)
    goatee = np.maximum(goatee, shape - np.float32(0.06))
    canvas.paint(space, goatee, colour, kinds[2].astype(float))
    top = pose.nose[:, 1] + 0.06
    moustache = shapes.ellipse(space, mouth_x, (top + mouth_y) / 2 - 0.01, 0.36, 0.10)
    canvas.paint(space, moustache, colour, (kinds[1] | kinds[2] | kinds[3]).astype(float))


def paint_front_hair(canvas: Canvas, people: Identities, pictures: Pictures, pose: Pose) -> None:
    """Hair over forehead and temples."""
    for part, rows in canvas.parts(people.hair != BALD, _hair_window(pose, 1.1)):
        who, which, p = people.take(rows), pictures.take(rows), pose.take(rows)
        space = part.space(p.x, p.y, p.unit, p.tilt)
        style = STYLE[who.hair]
        line, fall, slant = style[:, 4], style[:, 5], style[:, 6] * who.parting
        t = (space.u - per_picture(0.6 * p.shift)) / per_picture(who.face_width)
        hairline = t * (per_picture(fall) * t + per_picture(slant))
        hairline = hairline + per_picture(line + 0.25 * p.lift)
        front = np.maximum(_hair(space, who, which, style), (space.v - hairline) * np.float32(0.8))
        part.paint(space, front, who.hair_rgb)
        # A lighter crown distinguishes hair from a helmet.
        shine = shapes.ellipse(space, 0.3 * who.parting, -0.95, 0.38, 0.16)
        shine = np.maximum(shine, front + np.float32(0.04))
        part.soften(shine, 0.12, who.hair_rgb * 0.75 + 0.25, 0.6)
