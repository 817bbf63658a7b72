"""References and their people, checked before anything is generated."""

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
