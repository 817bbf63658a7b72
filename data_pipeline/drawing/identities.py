"""Everything about a person that is constant between images.

Lengths are in half face heights (crown to chin is 2), x to the right and y down from the middle of
the face; angles in radians; colours sRGB in [0, 1].
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from data_pipeline.drawing import rows as keyed
from data_pipeline.drawing.rows import Draws, Rows, fold

SPLITS = ("in_train", "out_of_train", "out_of_domain", "look_alikes")
SPLIT_SIZE = 1_000_000  # a split's numbers start at its index times this
GROUP = 10  # look-alikes come in groups of this many

CLASS_WORDS = ("man", "woman", "boy", "girl", "person")
AGES = ("child", "young", "middle-aged", "old")
HAIR_STYLES = (
    *("bald", "balding", "short", "side part", "curly", "fringe", "long", "bob", "bun", "ponytail"),
    *("mohawk", "pigtails", "flat top"),  # out of domain only
)
BEARDS = ("none", "moustache", "goatee", "full beard")
GLASSES = ("none", "round", "square")

SKIN_TONES = np.array(
    [
        *([1.00, 0.88, 0.80], [0.97, 0.80, 0.67], [0.91, 0.70, 0.54]),
        *([0.78, 0.55, 0.39], [0.60, 0.40, 0.27], [0.42, 0.27, 0.18]),
        *([0.27, 0.16, 0.11],),
    ]
)
HAIR_COLOURS = np.array(
    [
        *([0.07, 0.06, 0.07], [0.24, 0.14, 0.08], [0.45, 0.26, 0.12], [0.62, 0.24, 0.08]),
        *([0.88, 0.70, 0.32], [0.62, 0.62, 0.64], [0.92, 0.92, 0.93]),
        *([0.20, 0.42, 0.90], [0.25, 0.72, 0.35], [0.93, 0.38, 0.66], [0.55, 0.25, 0.75]),
    ]
)
SKIN_GROUPS = {"light": 0.0, "medium": 2.0, "dark": 3.5}
"""Positions in SKIN_TONES from which on a skin counts as such."""
NATURAL_HAIR = 7  # later colours are out of domain
EYE_COLOURS = np.array(
    [
        *([0.20, 0.11, 0.06], [0.45, 0.27, 0.10], [0.16, 0.42, 0.80]),
        *([0.18, 0.52, 0.28], [0.40, 0.46, 0.50]),
    ]
)
LIP_COLOURS = np.array([[0.74, 0.36, 0.34], [0.80, 0.12, 0.20], [0.60, 0.22, 0.30]])
FRAME_COLOURS = np.array([[0.08, 0.08, 0.10], [0.55, 0.36, 0.10], [0.70, 0.10, 0.12]])

# (low, high) per proportion. Out of domain is sampled outside: narrower or wider faces, etc.
RANGES = {
    "face_width": (0.70, 0.86),  # half the width
    "taper": (0.0, 0.26),  # how much narrower the jaw is than the cheekbones
    "chin": (0.0, 0.9),  # 0 round or pointed, 1 square
    "eye_spacing": (0.29, 0.42),  # from the middle to an eye's centre
    "eye_height": (-0.14, 0.04),
    "eye_width": (0.15, 0.22),  # half
    "eye_opening": (0.075, 0.145),  # half
    "eye_slant": (-0.35, 0.35),  # slope; positive: outer corners up
    "brow_gap": (0.18, 0.32),  # above the eye's centre
    "brow_thickness": (0.03, 0.085),  # half
    "brow_angle": (-0.3, 0.3),  # slope; positive: outer ends up
    "nose_length": (0.28, 0.5),  # from the eyes' height to the tip
    "nose_width": (0.09, 0.2),  # half
    "mouth_height": (0.22, 0.32),  # from the nose's tip
    "mouth_width": (0.2, 0.36),  # half
    "mouth_fullness": (0.035, 0.125),
    "ear_size": (0.13, 0.24),
    "build": (1.15, 1.6),  # from the middle to a shoulder
    "skin": (0.6, 4.6),  # position in SKIN_TONES
}
OUT_OF_DOMAIN = {
    "face_width": ((0.60, 0.67), (0.90, 0.97)),
    "skin": ((0.0, 0.25), (5.2, 6.0)),
    "nose_width": ((0.05, 0.08), (0.22, 0.26)),
    "mouth_width": ((0.14, 0.18), (0.38, 0.43)),
}
INNER = (
    *("eye_spacing", "eye_height", "eye_width", "eye_opening", "eye_slant", "eye_colour"),
    *("brow_gap", "brow_thickness", "brow_angle", "nose_length", "nose_width"),
    *("mouth_height", "mouth_width", "mouth_fullness"),
)
"""Features that look-alikes do not share. Lashes and lip colour show gender, which they share."""

# Weights of HAIR_STYLES[:10] for masculine, feminine and other people.
STYLE_WEIGHTS = np.array(
    [
        [14, 8, 20, 20, 14, 14, 5, 0, 0, 5],
        [0, 0, 4, 6, 14, 8, 24, 18, 14, 12],
        [5, 0, 15, 10, 20, 20, 10, 20, 0, 0],
    ],
    float,
)


@dataclass(frozen=True)
class Identities(Rows):
    """A batch of people: numbers [n] float64, categories [n] int64, flags [n] bool.

    ``split`` and ``number`` say where a person comes from; ``name`` is unique. Categories are
    indices into the tables above. ``mole`` is (x, y) [n, 2], ``mole_size`` 0 without one;
    ``freckles`` their opacity. Each of RANGES is a field.
    """

    name: np.ndarray
    split: np.ndarray
    number: np.ndarray
    class_word: np.ndarray
    age: np.ndarray
    hair: np.ndarray
    hair_colour: np.ndarray
    hair_volume: np.ndarray
    parting: np.ndarray
    beard: np.ndarray
    glasses: np.ndarray
    frame_colour: np.ndarray
    freckles: np.ndarray
    mole: np.ndarray
    mole_size: np.ndarray
    eye_colour: np.ndarray
    lashes: np.ndarray
    lip_colour: np.ndarray
    face_width: np.ndarray
    taper: np.ndarray
    chin: np.ndarray
    eye_spacing: np.ndarray
    eye_height: np.ndarray
    eye_width: np.ndarray
    eye_opening: np.ndarray
    eye_slant: np.ndarray
    brow_gap: np.ndarray
    brow_thickness: np.ndarray
    brow_angle: np.ndarray
    nose_length: np.ndarray
    nose_width: np.ndarray
    mouth_height: np.ndarray
    mouth_width: np.ndarray
    mouth_fullness: np.ndarray
    ear_size: np.ndarray
    build: np.ndarray
    skin: np.ndarray

    @property
    def feminine(self) -> np.ndarray:
        return np.isin(self.class_word, (1, 3))

    @property
    def masculine(self) -> np.ndarray:
        return np.isin(self.class_word, (0, 2))

    @property
    def skin_rgb(self) -> np.ndarray:
        """[n, 3]"""
        low = np.minimum(self.skin.astype(int), len(SKIN_TONES) - 2)
        part = (self.skin - low)[:, None]
        return SKIN_TONES[low] * (1 - part) + SKIN_TONES[low + 1] * part

    @property
    def hair_rgb(self) -> np.ndarray:
        """[n, 3]"""
        return HAIR_COLOURS[self.hair_colour]


def identities_of(split: str, indices: ArrayLike, seed: int = 0) -> Identities:
    """The people ``indices`` [n] of a split; each is independent of the rest of the batch."""
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is unknown; choose from {', '.join(SPLITS)}")
    indices = np.atleast_1d(np.asarray(indices, np.int64))
    if len(indices) and not (0 <= indices.min() and indices.max() < SPLIT_SIZE):
        raise ValueError(f"identity indices of a split lie in [0, {SPLIT_SIZE})")
    place = SPLITS.index(split)
    number = place * SPLIT_SIZE + indices
    people = _draw(fold(keyed.PERSON, seed, number), split == "out_of_domain")
    if split == "look_alikes":
        shared = _draw(fold(keyed.GROUP, seed, number - indices % GROUP), False)
        people = {name: (people if name in INNER else shared)[name] for name in people}
    names = np.array([f"{split}_{seed}_{i:06d}" for i in indices])
    return Identities(name=names, split=np.full(len(indices), place), number=number, **people)


def _draw(keys, shifted: bool) -> dict[str, np.ndarray]:
    draws = Draws(keys)
    traits = {name: draws.uniform(*bounds) for name, bounds in RANGES.items()}
    word = draws.choice([36, 36, 9, 9, 10])
    child = np.isin(word, (2, 3))
    feminine, masculine = np.isin(word, (1, 3)), np.isin(word, (0, 2))
    age = np.where(child, 0, 1 + draws.choice([5, 3, 2]))
    old = age == 3

    hair = draws.choice(STYLE_WEIGHTS[np.where(feminine, 1, np.where(masculine, 0, 2))])
    thinning = child & (hair < 2)
    hair = np.where(thinning, 2, hair)
    colour = draws.choice([28, 22, 18, 12, 20])
    colour = np.where(old, 5 + draws.choice([1, 1]), colour)
    # Hair as dark as the skin would leave a head without an outline. Dark hair on dark skin is
    # common, so only light hair on it is left out.
    colour = np.where((traits["skin"] > 3.2) & np.isin(colour, (3, 4)), 0, colour)

    grown = ~child & ~feminine
    beard = np.where(grown & masculine, draws.choice([5, 1.6, 1.6, 2.4]), 0)
    glasses = draws.choice([64, 18, 18])
    frame = draws.choice([5, 2, 2])
    freckled = draws.flag(0.16) & (traits["skin"] < 3.2)
    freckles = np.where(freckled, draws.uniform(0.5, 0.8), 0)
    side = np.where(draws.flag(0.5), 1.0, -1.0)
    mole = np.stack([side * draws.uniform(0.3, 0.5), draws.uniform(0.22, 0.55)], axis=1)
    mole_size = np.where(draws.flag(0.2), draws.uniform(0.045, 0.06), 0)
    parting = np.where(draws.flag(0.5), 1.0, -1.0)

    # Children: rounder and lower faces, bigger eyes, finer brows; women: finer brows, fuller lips.
    blend = np.where(child, 0.6, 0.0)
    traits["face_width"] += blend * (0.86 - traits["face_width"])
    traits["chin"] *= 1 - blend
    traits["eye_height"] += 0.1 * child
    traits["eye_opening"] *= 1 + 0.2 * child
    traits["nose_length"] *= 1 - 0.2 * child
    traits["nose_width"] *= 1 - 0.2 * child
    traits["build"] = np.where(child, 0.85 + 0.5 * (traits["build"] - 1.15), traits["build"])
    traits["build"] -= 0.15 * (feminine & ~child)
    traits["brow_thickness"] *= np.where(feminine | child, 0.75, 1.0)
    traits["chin"] *= np.where(feminine, 0.5, 1.0)
    traits |= {
        "eye_colour": draws.choice([30, 20, 20, 15, 15]),
        "lashes": np.where(feminine, 1.0, 0.0),
        "lip_colour": np.where(feminine & ~child, draws.choice([2, 2, 2]), 0),
        "hair_volume": draws.uniform(0, 1),
    }
    if shifted:
        for name, ranges in OUT_OF_DOMAIN.items():
            second = draws.flag(0.5)
            low, high = (np.where(second, ranges[1][i], ranges[0][i]) for i in (0, 1))
            traits[name] = draws.uniform(low, high)
        hair = 10 + np.where(feminine, draws.choice([1, 4, 0]), draws.choice([3, 0, 3]))
        colour = NATURAL_HAIR + draws.choice([1, 1, 1, 1])
        traits["build"] *= 1.1
    return traits | {
        "class_word": word,
        "age": age,
        "hair": hair,
        "hair_colour": colour,
        "beard": beard,
        "glasses": glasses,
        "frame_colour": frame,
        "freckles": freckles,
        "mole": mole,
        "mole_size": mole_size,
        "parting": parting,
    }
