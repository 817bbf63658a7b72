"""Strengths by step, their command-line form, and regions as arrays."""

import numpy as np
import pytest
from PIL import Image

from persongen_jax.diffusion.conditioning import region_arrays, to_region
from persongen_jax.diffusion.options import schedule
from persongen_jax.generate.base import parse_scales
from persongen_jax.pipeline.conditioner import check_people


def test_a_number_and_ranges():
    assert schedule("identity", 0.5, 3).tolist() == [0.5, 0.5, 0.5]
    found = schedule("identity", [(0.3, 1.0, 0.8), (0.0, 0.3, 0.0)], 10)
    assert np.allclose(found, [0] * 3 + [0.8] * 7) and found.dtype == np.float32
    # Steps that no range covers have 1; 0.3 of 50 steps are 15.
    assert schedule("body", [(0.3, 0.5, -2)], 50).tolist() == [1] * 15 + [-2] * 10 + [1] * 25


@pytest.mark.parametrize(
    ("strength", "named"),
    [
        ([(0.0, 0.5, 1), (0.4, 1.0, 2)], "'lora' overlap before 0.5"),
        ([(0.5, 0.5, 1)], "0.5..0.5"),
        ([(0.0, 1.5, 1)], "0..1.5"),
        ([(0.0, 1.0)], "start, end, value"),
        ("strong", "start, end, value"),
        (float("nan"), "finite"),
    ],
)
def test_bad_strengths_are_named(strength, named):
    with pytest.raises(ValueError, match=named):
        schedule("lora", strength, 10)


def test_the_command_lines_form():
    items = ["identity=0@0-0.3", "lora=0.5", " identity = 0.8@0.3-1"]
    found = parse_scales(items)
    assert found == {"identity": [(0.0, 0.3, 0.0), (0.3, 1.0, 0.8)], "lora": 0.5}
    for bad in (["x"], ["x=1@0.3"], ["x=a"], ["x=1", "x=2"], ["x=1@0-0.5", "x=1"]):
        with pytest.raises(ValueError, match="--scale x"):
            parse_scales(bad)


def test_people_and_regions_belong_together():
    a, b, c = (np.full((8, 8, 3), i, np.uint8) for i in range(3))
    assert check_people([[a, b], [c]], None, 2) == [[[a, b]], [[c]]]
    people = check_people([[[a, b], [c]]], [[np.ones((2, 2)), np.zeros((2, 2))]], 1)
    assert list(map(len, people[0])) == [2, 1]
    cases = [
        ([[a]], None, 2, "1 lists of references for 2 prompts"),
        ([[]], None, 1, "0 references"),
        ([[a] * 5], None, 1, "5 references"),
        ([[[a], [b]]], None, 1, "give regions"),
        ([[[a], b]], None, 1, "not a mix of both"),
        ([[[a], [b]]], [[np.ones((2, 2))]], 1, "1 regions for 2 people"),
        ([[a]], [], 1, "0 lists of regions"),
    ]
    for references, regions, count, named in cases:
        with pytest.raises(ValueError, match=named):
            check_people(references, regions, count)


def test_masks_of_any_kind_and_size():
    left = np.zeros((40, 60), bool)
    left[:, :30] = True
    wanted = np.tile(np.array([1, 1, 0, 0], np.float32), (2, 1))
    for mask in (left, left.astype(float), Image.fromarray(left), wanted):
        assert np.array_equal(to_region(mask, 2, 4), wanted)
    assert to_region(left, 1, 1).item() == 0.5
    found = region_arrays([[left, ~left], [left]], [[0, 0], [0]], 2, 4)
    assert found.shape == (2, 2, 2, 4) and not found[1, 1].any()
    assert np.array_equal(found[0, 0] + found[0, 1], np.ones((2, 4)))
    for bad, named in (
        (np.ones((2, 2), np.uint8), "give 0 and 255"),
        (np.full((2, 2), 3.0), "3 to 3"),
    ):
        with pytest.raises(ValueError, match=named):
            to_region(bad, 2, 2)
    with pytest.raises(ValueError, match=r"\(2, 2, 2\)"):
        to_region(np.ones((2, 2, 2)), 2, 2)
