"""Drawn faces whose attributes are known exactly: the miniature's CelebA.

    python -m data_pipeline.attributes.drawn_faces --out faces --count 200 --size 64

writes such faces as a plain folder with its table. Attributes are chosen independently, so all 128
combinations can be drawn; a fifth of them is left out of training on purpose. A face looks the same
at every size.
"""

import argparse
import csv
import functools
import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from data_pipeline.attributes.labelled import AttributeData, Description, LabelledImages
from data_pipeline.attributes.vocabulary import Vocabulary
from data_pipeline.cli import command
from data_pipeline.drawing.identities import HAIR_STYLES, Identities, identities_of
from data_pipeline.drawing.pictures import EXPRESSIONS, HATS, Pictures, pictures_of
from data_pipeline.drawing.portrait import render
from data_pipeline.drawing.rows import Draws, fold

VOCABULARY = Vocabulary(
    ("glasses", "beard", "hat", "long_hair", "light_hair", "dark_skin", "smiling")
)
TRAIN, TEST = 20_000, 4_000  # faces
SMALLEST = 16  # pixels
ATTRIBUTES, COMBINATION, LOOK = range(3)  # parts of random keys: what they are used for
BATCH = 512


def describe(size: int) -> Description:
    """For faces of ``size`` pixels; ValueError for fewer than 16."""
    if size < SMALLEST:
        raise ValueError(f"drawn faces of {size} pixels: at least {SMALLEST} are needed")
    return Description(VOCABULARY, (size, size, 3))


def open_drawn_faces(size: int, train: int = TRAIN, test: int = TEST) -> AttributeData:
    """Drawn faces, uint8 [size, size, 3]; ``test`` has other people, and all combinations.

    They are drawn when the first one is read; 20,000 of 32 pixels take 15 s on one core.

    Raises:
        ValueError: fewer than 16 pixels.
    """
    describe(size)
    parts = {}
    for split, count, combinations in (
        ("in_train", train, seen_combinations()),
        ("out_of_train", test, all_combinations()),
    ):
        values = draw_values(split, count, combinations)
        name = f"drawn-faces-1-{split}-{count}-{size}"
        parts[split] = LabelledImages(DrawnFaces(split, values, size), values, name)
    return AttributeData(
        VOCABULARY,
        parts["in_train"],
        parts["out_of_train"],
        unseen=unseen_combinations(),
        mirror=True,
    )


# ---- combinations ------------------------------------------------------------------------------


def all_combinations() -> np.ndarray:
    """[2^K, K] int8."""
    return np.array(list(itertools.product((0, 1), repeat=len(VOCABULARY))), np.int8)


def unseen_combinations() -> np.ndarray:
    """The fifth of all combinations that training never sees, [25, K] int8."""
    rows = all_combinations()
    order = np.argsort(Draws(fold(COMBINATION, np.arange(len(rows)))).uniform(), kind="stable")
    return rows[np.sort(order[: len(rows) // 5])]


def seen_combinations() -> np.ndarray:
    """All others, [103, K] int8."""
    unseen = set(map(tuple, unseen_combinations()))
    return np.array([row for row in all_combinations() if tuple(row) not in unseen], np.int8)


def draw_values(split: str, count: int, combinations: np.ndarray) -> np.ndarray:
    """[count, K] int8, each row one of ``combinations`` with equal probability."""
    number = Draws(_keys(split, np.arange(count), ATTRIBUTES)).choice(np.ones(len(combinations)))
    return combinations[number]


# ---- faces -------------------------------------------------------------------------------------


class DrawnFaces:
    """The faces of a split as a sequence of images; all are drawn when the first one is read."""

    def __init__(self, split: str, values: np.ndarray, size: int):
        self._split, self._values, self.shape = split, values, (size, size, 3)

    def __len__(self):
        return len(self._values)

    def __getitem__(self, rows):
        return self._faces[rows]

    @functools.cached_property
    def _faces(self) -> np.ndarray:
        return draw_faces(self._split, self._values, self.shape[0])


def draw_faces(split: str, values: np.ndarray, size: int) -> np.ndarray:
    """Face number i of a split with the attributes ``values[i]``: uint8 [n, size, size, 3]."""
    faces = np.empty((len(values), size, size, 3), np.uint8)
    for start in range(0, len(values), BATCH):
        rows = np.arange(start, min(start + BATCH, len(values)))
        draws = Draws(_keys(split, rows, LOOK))
        people = _with_attributes(identities_of(split, rows), values[rows], draws)
        pictures = _portraits(pictures_of(_keys(split, rows, LOOK, 1)), values[rows], draws)
        faces[rows] = render(people, pictures, size).images
    return faces


def _with_attributes(people: Identities, values, draws: Draws) -> Identities:
    """The people, adults without other features, with the attributes in ``values``."""
    has = dict(zip(VOCABULARY.names, values.T.astype(bool), strict=True))

    def either(name, yes, no):
        """The entry ``yes`` of a table where the attribute holds, else one of ``no``."""
        chosen = [np.array(places)[draws.choice(np.ones(len(places)))] for places in (yes, no)]
        return np.where(has[name], *chosen)

    style = {name: place for place, name in enumerate(HAIR_STYLES)}
    skin = np.where(has["dark_skin"], draws.uniform(4.0, 5.0), draws.uniform(0.3, 2.2))
    return replace(
        people,
        class_word=np.full(len(people), 4),  # no feature depends on gender
        age=np.ones(len(people), np.int64),
        glasses=either("glasses", [1, 2], [0]),
        frame_colour=np.zeros(len(people), np.int64),
        beard=either("beard", [3], [0]),
        hair=either("long_hair", [style["long"]], [style["short"], style["side part"]]),
        hair_colour=either("light_hair", [4, 6], [0, 1]),
        skin=skin,
        lip_colour=np.zeros(len(people), np.int64),
        lashes=np.zeros(len(people)),
        freckles=np.zeros(len(people)),
        mole_size=np.zeros(len(people)),
    )


def _portraits(pictures: Pictures, values, draws: Draws) -> Pictures:
    """The face centred, upright, as large as the image."""
    has = dict(zip(VOCABULARY.names, values.T.astype(bool), strict=True))
    n = len(pictures)
    hats = [HATS.index(name) for name in ("hat", "cap", "beanie")]
    hat = np.array(hats)[draws.choice(np.ones(len(hats)))]
    return replace(
        pictures,
        framing=np.zeros(n, np.int64),
        face_x=draws.uniform(0.48, 0.52),
        face_y=draws.uniform(0.53, 0.57),
        unit=draws.uniform(0.28, 0.32),
        tilt=draws.uniform(-0.08, 0.08),
        turn=draws.uniform(-0.15, 0.15),
        pitch=draws.uniform(-0.08, 0.08),
        gaze=np.zeros(n, np.int64),
        expression=np.where(has["smiling"], EXPRESSIONS.index("laughing"), 0),
        pose=np.zeros(n, np.int64),
        hat=np.where(has["hat"], hat, 0),
        sunset=np.zeros(n, bool),
    )


def _keys(split: str, rows, *parts) -> np.ndarray:
    return fold(int(split == "in_train"), rows, *parts)


# ---- as a folder -------------------------------------------------------------------------------


def write_folder(out: Path, count: int, size: int, split: str = "out_of_train") -> None:
    """Write ``out``/*.png and ``out``/attributes.csv for data_pipeline.attributes.folder."""
    out.mkdir(parents=True, exist_ok=True)
    values = draw_values(split, count, all_combinations())
    with open(out / "attributes.csv", "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["image", *VOCABULARY.names])
        for i, face in enumerate(draw_faces(split, values, size)):
            name = f"{i:06d}.png"
            Image.fromarray(face).save(out / name)
            table.writerow([name, *values[i].tolist()])


@command
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m data_pipeline.attributes.drawn_faces", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--out", type=Path, required=True, help="folder")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--size", type=int, default=64, help="pixels")
    args = parser.parse_args(argv)
    write_folder(args.out, args.count, args.size)
    print(f"{args.count} faces: {args.out}")


if __name__ == "__main__":
    main()
