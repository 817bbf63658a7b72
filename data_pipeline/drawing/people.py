"""Drawn people: the miniature's photographs, drawn instead of downloaded.

Everything is a function of seeds; nothing is stored:

    people = make_identities("in_train", 100)
    drawn = render(people, draw_pictures(seed=7, count=100), size=64)
    drawn.images, drawn.landmarks, drawn.captions, ...              # portrait.People
    examples("in_train", identity_indices=[3, 3, 8], picture_seeds=[0, 1, 2])

The splits hold different people by construction. ``out_of_domain`` has hair, skin tones and
proportions that the others never show; in ``look_alikes`` ten consecutive people share everything
but eyes, brows, nose and mouth.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from data_pipeline.drawing.captions import TRIGGER, vocabulary, words_of
from data_pipeline.drawing.faults import PARTS, Faults
from data_pipeline.drawing.identities import SPLITS, Identities, identities_of
from data_pipeline.drawing.pictures import (
    CLOTHES,
    COLOUR_NAMES,
    EXPRESSIONS,
    FRAMING_WEIGHTS,
    HATS,
    OBJECTS,
    SCENES,
    Pictures,
    pictures_of,
)
from data_pipeline.drawing.portrait import People, render, render_masks
from data_pipeline.drawing.rows import EXAMPLE, PICTURE, fold

__all__ = [
    "CLOTHES",
    "COLOUR_NAMES",
    "EXPRESSIONS",
    "HATS",
    "OBJECTS",
    "PARTS",
    "SCENES",
    "SPLITS",
    "TRIGGER",
    "Faults",
    "Identities",
    "People",
    "Pictures",
    "contact_sheet",
    "draw_pictures",
    "example",
    "examples",
    "identities_of",
    "identity_of",
    "make_identities",
    "render",
    "render_masks",
    "vocabulary",
    "words_of",
]


def make_identities(split: str, count: int, seed: int = 0) -> Identities:
    """The first ``count`` people of a split; SPLITS names the splits."""
    return identities_of(split, np.arange(count), seed)


def identity_of(split: str, index: int, seed: int = 0) -> Identities:
    """One person, as a batch of one: row ``index`` of make_identities(split, n, seed)."""
    return identities_of(split, [index], seed)


def draw_pictures(
    seed: int, count: int, framing_weights: Sequence[float] = FRAMING_WEIGHTS
) -> Pictures:
    """``count`` variations. ``framing_weights`` are for portrait, half and full figures."""
    return pictures_of(fold(PICTURE, seed, np.arange(count)), framing_weights)


def examples(
    split: str,
    identity_indices: ArrayLike,
    picture_seeds: ArrayLike,
    size: int = 64,
    seed: int = 0,
    framing_weights: Sequence[float] = FRAMING_WEIGHTS,
    faults: Faults | None = None,
) -> People:
    """Person ``identity_indices[i]`` with variation ``picture_seeds[i]``, both [n] integers.

    A picture seed gives everyone the same variation; use different seeds for different images.
    ``faults`` [n] spoil faces.
    """
    seeds = np.atleast_1d(np.asarray(picture_seeds, np.int64))
    people = identities_of(split, identity_indices, seed)
    return render(people, pictures_of(fold(EXAMPLE, seed, seeds), framing_weights), size, faults)


def example(
    split: str, identity_index: int, picture_seed: int, size: int = 64, seed: int = 0
) -> People:
    """One image, as a batch of one."""
    return examples(split, [identity_index], [picture_seed], size, seed)


def contact_sheet(images: np.ndarray, columns: int) -> np.ndarray:
    """Tile [n, s, s, 3] into one image [rows * s, columns * s, 3]; missing ones are black."""
    count, size = images.shape[:2]
    rows = -(-count // columns)
    padded = np.zeros((rows * columns, *images.shape[1:]), np.uint8)
    padded[:count] = images
    grid = padded.reshape(rows, columns, size, size, 3).transpose(0, 2, 1, 3, 4)
    return grid.reshape(rows * size, columns * size, 3)
