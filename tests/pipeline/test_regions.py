"""References, their people and regions, checked before anything is generated."""

import numpy as np
import pytest
from PIL import Image

from persongen_jax.pipeline.conditioner import check_people

FACE = np.zeros((3, 8, 3), np.uint8)  # as many rows as one person may have references


PICTURE = Image.fromarray(FACE)


def test_one_person_and_several():
    assert check_people([[PICTURE]], None, 1) == [[[PICTURE]]]
    masks = [np.ones((8, 8)), np.zeros((8, 8))]
    two = [[[PICTURE], [PICTURE, PICTURE]]]
    assert check_people(two, [masks], 1) == two


@pytest.mark.parametrize("image", [PICTURE, FACE], ids=["picture", "array"])
@pytest.mark.parametrize("depth", [0, 1])
def test_an_image_in_place_of_a_list_is_refused(image, depth):
    references = [image] if depth else image
    with pytest.raises(ValueError, match=r"a list belongs; .*references=\[\[face\]\]"):
        check_people(references, None, 1)


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
