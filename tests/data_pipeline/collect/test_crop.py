"""The square around the person, and everything that moves with it."""

import numpy as np
import pytest

from data_pipeline.collect.crop import Square, plan_square
from data_pipeline.collect.mask import mask_of_face
from data_pipeline.collect.settings import Crop


@pytest.mark.parametrize("seed", range(30))
def test_the_face_is_whole_and_more_than_a_tenth(seed):
    rng = np.random.default_rng(seed)
    height, width = rng.integers(300, 1500, 2)
    w, h = rng.uniform(40, min(height, width), 2)
    x, y = rng.uniform(0, width - w), rng.uniform(0, height - h)
    box = (x, y, x + w, y + h)
    square = plan_square((height, width), box, Crop())
    if square is None:  # a face that no square holds, as one of 300 x 80
        assert max(w, h) + 1 > np.sqrt(w * h / 0.1) or max(w, h) + 1 > min(height, width)
        return
    x0, y0, x1, y1 = square.box
    assert 0 <= x0 <= x and 0 <= y0 <= y and box[2] <= x1 <= width and box[3] <= y1 <= height
    assert w * h > 0.1 * square.side**2
    # As large as that allows.
    larger = square.side + 1
    assert larger > min(height, width) or w * h <= 0.1 * larger**2 * 1.0001


def test_a_face_over_the_edge_counts_as_far_as_it_is_seen():
    square = plan_square((600, 600), (-50.0, 100.0, 150.0, 300.0), Crop())
    assert square.left == 0 and square.side == int(np.sqrt(150 * 200 / 0.1) * 0.9999995)


def test_the_square_centres_on_the_person_as_far_as_the_face_allows():
    face = (900.0, 100.0, 1000.0, 220.0)
    alone = plan_square((1000, 2000), face, Crop())
    turned = plan_square((1000, 2000), face, Crop(), person=(1000.0, 0.0, 1200.0, 900.0))
    assert turned.left > alone.left and turned.left <= 900


def test_points_and_pixels_move_alike():
    image = np.zeros((400, 500, 3), np.uint8)
    image[210:220, 310:320] = 255  # a mark at (315, 215)
    square = Square(200, 100, 240, 120)
    part = square.cut(image)
    rows, columns = np.nonzero(part[..., 0] > 128)
    ((x, y),) = square.moved([(315, 215)])
    assert part.shape == (120, 120, 3)
    assert abs(columns.mean() + 0.5 - x) < 0.6 and abs(rows.mean() + 0.5 - y) < 0.6
    assert square.moved_box((150, 150, 300, 500)) == (0, 25, 50, 120)


def test_large_crops_are_reduced_and_small_ones_are_not():
    large = (1000.0, 900.0, 1900.0, 2000.0)
    assert plan_square((3000, 3000), large, Crop()).size == 1024
    assert plan_square((400, 400), (100.0, 90.0, 190.0, 200.0), Crop()).size == 314
    assert plan_square((3000, 3000), large, Crop(max_side=None)).size > 2048


def test_of_several_masks_the_one_over_the_face():
    masks = np.zeros((2, 100, 100), np.float32)
    masks[0, :, :45] = 1
    masks[1, :, 45:] = 1
    found, share = mask_of_face(masks, (40, 20, 80, 60))
    assert share == 0.875 and found is not None and found[0, 99] == 1
    assert mask_of_face(masks[:1], (60, 20, 80, 60)) == (None, 0.0)
    assert mask_of_face(masks[:0], (60, 20, 80, 60)) == (None, 0.0)
