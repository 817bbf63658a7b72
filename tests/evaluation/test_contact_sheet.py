"""Contact sheets: their layout, and which rows are chosen."""

import numpy as np
import pytest

from persongen_jax.evaluation.contact_sheet import (
    GAP,
    LABEL_HEIGHT,
    LARGEST_TILE,
    SMALLEST_TILE,
    Row,
    choose_rows,
    contact_sheet,
)

RED, BLUE = (255, 0, 0), (0, 0, 255)


def plain(colour, height=64, width=64):
    return np.full((height, width, 3), colour, np.uint8)


def test_reference_left_generations_right_label_above():
    rows = [Row("anna / a woman", plain(RED), [plain(BLUE)] * 2)] * 3
    sheet, side = contact_sheet(rows), SMALLEST_TILE
    pitch = side + LABEL_HEIGHT + GAP
    assert sheet.dtype == np.uint8 and sheet.shape[0] == 3 * pitch + GAP
    for i in range(3):
        top = i * pitch + LABEL_HEIGHT
        line = sheet[top + side // 2]
        assert (line[GAP : GAP + side] == RED).all()
        blue = np.flatnonzero((line == BLUE).all(-1))
        assert len(blue) == 2 * side and blue[0] > GAP + side
        label = sheet[i * pitch : top]
        assert (label < 128).any()  # ink
        assert (label[:, 2 * side :] == 255).all()


def test_titles_stand_above_their_columns():
    rows = [Row("x", plain(RED), [plain(BLUE)] * 2)]
    plain_sheet = contact_sheet(rows)
    sheet = contact_sheet(rows, ["reference", "one", "a name that is far too long for its column"])
    assert (sheet[LABEL_HEIGHT:] == plain_sheet).all()
    head = (sheet[:LABEL_HEIGHT] < 128).any(-1).any(0)  # columns with ink
    second = np.flatnonzero((sheet[LABEL_HEIGHT * 2 + 9] == BLUE).all(-1))[0]
    third = second + SMALLEST_TILE + GAP
    assert head[:SMALLEST_TILE].any() and head[second : second + 40].any()
    assert not head[second + 60 : third].any()  # "one" is short
    assert head[third:].any() and not head[-1]


def test_pictures_of_all_sizes_fit():
    row = Row("x", plain(RED, 900, 300), [plain(BLUE, 512, 512), plain(BLUE, 20, 40)])
    sheet = contact_sheet([row])
    assert sheet.shape[0] == LARGEST_TILE + LABEL_HEIGHT + 2 * GAP
    red = (sheet == RED).all(-1)
    assert red.any(1).sum() == LARGEST_TILE and red.any(0).sum() == LARGEST_TILE // 3


def test_long_and_foreign_labels_are_cut():
    sheet = contact_sheet([Row("Ω" + "long " * 100, plain(RED), [plain(BLUE)])])
    assert (sheet[:LABEL_HEIGHT, -GAP:] == 255).all()
    with pytest.raises(ValueError, match="at least one"):
        contact_sheet([])


@pytest.mark.parametrize(
    ("people", "prompts", "limit", "rows"),
    [
        (2, 2, 40, [(0, 0), (0, 1), (1, 0), (1, 1)]),
        (2, 4, 4, [(0, 0), (0, 1), (1, 0), (1, 1)]),
        (3, 2, 2, [(0, 0), (1, 0)]),
    ],
)
def test_rows_are_limited(people, prompts, limit, rows):
    assert choose_rows(people, prompts, limit) == rows
