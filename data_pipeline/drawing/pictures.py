"""What varies between images: pose, framing, expression, light, clothes, place, wording.

Positions are in sides of the frame, x right and y down; angles in radians.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from data_pipeline.drawing.rows import Draws, Rows

EXPRESSIONS = ("neutral", "smiling", "laughing", "surprised", "angry", "sad")
GAZES = ("camera", "left", "right")  # left and right in the picture
CLOTHES = ("shirt", "suit", "dress", "space suit", "cloak", "sweater")
HATS = ("none", "hat", "top hat", "cap", "beanie")
POSES = ("arms down", "hands on hips", "waving", "phone")
FRAMINGS = ("portrait", "half", "full")
SCENES = (
    *("mountains", "city", "desert", "room", "beach"),
    *("forest", "snowy night", "park", "space", "stage"),
)
# Per scene: the object on the left and the one on the right of an image that is not mirrored.
OBJECTS = {
    "mountains": ("none", "castle"),
    "city": ("bank", "none"),
    "desert": ("palm trees", "camels"),
    "room": ("portrait", "shelf"),
    "beach": ("umbrella", "boat"),
    "forest": ("none", "none"),
    "snowy night": ("moon", "house"),
    "park": ("bench", "flowers"),
    "space": ("earth", "planet"),
    "stage": ("none", "microphone"),
}
SUNSET_SCENES = ("mountains", "city", "desert", "beach", "park")
COLOURS = {
    "red": (0.86, 0.10, 0.12),
    "orange": (0.97, 0.52, 0.06),
    "yellow": (0.98, 0.87, 0.16),
    "dark green": (0.03, 0.36, 0.15),
    "blue": (0.12, 0.33, 0.86),
    "purple": (0.55, 0.17, 0.68),
    "black": (0.08, 0.08, 0.10),
    "white": (0.95, 0.95, 0.95),
}
COLOUR_NAMES = tuple(COLOURS)
PALETTE = np.array(list(COLOURS.values()))

# Half the face's height in sides, and the face's middle, per framing: (low, high). A portrait shows
# as much of the clothes as their kind needs, and of the sides as the scene's objects need.
FACE_UNIT = np.array([(0.25, 0.30), (0.145, 0.18), (0.094, 0.104)])
FACE_Y = np.array([(0.42, 0.48), (0.24, 0.31), (0.17, 0.20)])
FACE_X = np.array([(0.41, 0.59), (0.35, 0.65), (0.30, 0.70)])
FRAMING_WEIGHTS = (64, 18, 18)
WORDINGS = ("general", "noun", "age", "feeling", "mood", "gaze", "background", "time", "body")


@dataclass(frozen=True)
class Pictures(Rows):
    """A batch of variations, [n] each unless noted; categories index the tables above.

    ``turn`` is the yaw, positive to the image's right; ``pitch`` positive downwards; ``tilt``
    clockwise. ``detail`` [n, 12] in [0, 1) places a scene's objects, ``wording`` [n, 9] in [0, 1)
    selects phrasings, one column per name of WORDINGS.
    """

    framing: np.ndarray
    face_x: np.ndarray
    face_y: np.ndarray
    unit: np.ndarray
    tilt: np.ndarray
    turn: np.ndarray
    pitch: np.ndarray
    expression: np.ndarray
    strength: np.ndarray
    gaze: np.ndarray
    pose: np.ndarray
    pose_side: np.ndarray
    clothes: np.ndarray
    clothes_colour: np.ndarray
    accent: np.ndarray
    trousers: np.ndarray
    hat: np.ndarray
    hat_colour: np.ndarray
    scene: np.ndarray
    mirrored: np.ndarray
    sunset: np.ndarray
    detail: np.ndarray
    light_angle: np.ndarray
    light_strength: np.ndarray
    brightness: np.ndarray
    warmth: np.ndarray
    wording: np.ndarray


def pictures_of(keys: np.ndarray, framing_weights: Sequence[float] = FRAMING_WEIGHTS) -> Pictures:
    """Variations from keys [n] uint64."""
    draws = Draws(keys)
    framing = draws.choice(framing_weights)
    expression = draws.choice([24, 24, 14, 13, 13, 12])
    turn = draws.uniform(-0.42, 0.42)
    aside = np.abs(turn) > 0.26
    side = np.where(turn > 0, 2, 1)
    scene = draws.choice(np.ones(len(SCENES)))
    pose = draws.choice([46, 18, 18, 18])
    clothes_colour = draws.choice(np.ones(len(COLOURS)))
    hat = draws.choice([62, 12, 8, 10, 8])
    return Pictures(
        framing=framing,
        face_x=draws.uniform(*FACE_X[framing].T),
        face_y=draws.uniform(*FACE_Y[framing].T),
        unit=draws.uniform(*FACE_UNIT[framing].T),
        tilt=draws.uniform(-0.22, 0.22),
        turn=turn,
        pitch=draws.uniform(-0.2, 0.2),
        expression=expression,
        strength=draws.uniform(0.8, 1.15),
        # The eyes follow a turned head only in half of the cases.
        gaze=np.where(aside & draws.flag(0.5), side, 0),
        pose=pose,
        pose_side=np.where(draws.flag(0.5), 1, -1),
        clothes=draws.choice([18, 18, 12, 14, 16, 18]),
        clothes_colour=clothes_colour,
        accent=draws.choice([1, 1, 1, 1]),
        trousers=draws.choice([1, 1, 1]),
        hat=hat,
        # A hat as blue as the suit would leave "a blue hat" unverifiable: use another colour.
        hat_colour=(clothes_colour + 1 + draws.choice(np.ones(len(COLOURS) - 1))) % len(COLOURS),
        scene=scene,
        mirrored=draws.flag(0.5),
        sunset=draws.flag(0.25) & np.isin(scene, [SCENES.index(s) for s in SUNSET_SCENES]),
        detail=draws.uniform(columns=12),
        light_angle=draws.uniform(0, 2 * np.pi),
        light_strength=draws.uniform(0.04, 0.26),
        brightness=draws.uniform(0.86, 1.06),
        warmth=draws.uniform(-0.05, 0.05),
        wording=draws.uniform(columns=len(WORDINGS)),
    )
