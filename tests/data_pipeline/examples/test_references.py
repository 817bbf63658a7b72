"""References as a field: from a call, of several people, and dropped. Sampling: test_source.py."""

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image as PillowImage

from data_pipeline.examples.conditions import References
from data_pipeline.examples.fields import Call
from data_pipeline.examples.source import ExampleSource
from data_pipeline.pictures.transforms import clip_preprocess
from tests.data_pipeline.photographs import assert_same, photograph_fields, photograph_source


def make_call(people):
    return Call(["a man"] * len(people), {}, people, np.zeros((len(people), 6)), (16, 16))


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (30 + i, 24, 3), np.uint8) for i in range(6)]


def test_a_call_gives_references(images):
    given = References(14).given(make_call([[images[:3]], [[PillowImage.fromarray(images[3])]]]))
    assert given["id_mask"].tolist() == [[True] * 3 + [False], [True] + [False] * 3]
    for name, (shape, dtype) in References(14).spec((16, 16)).items():
        assert given[name].shape == (2, *shape) and given[name].dtype == dtype
    for row, column, image in ((0, 0, 0), (0, 1, 1), (0, 2, 2), (1, 0, 3)):
        expected = clip_preprocess(images[image], 14)
        np.testing.assert_array_equal(given["id_pixel_values"][row, column], expected)
    assert not given["id_pixel_values"][~given["id_mask"]].any()


def test_several_people_lie_next_to_each_other(images):
    given = References(14).given(make_call([[images[:1], images[1:3]], [images[3:4]]]))
    first, second = [True, False, False, False], [True, True, False, False]
    assert given["id_mask"].tolist() == [first + second, first + [False] * 4]
    assert given["id_pixel_values"].shape == (2, 8, 14, 14, 3)
    for row, column, image in ((0, 0, 0), (0, 4, 1), (0, 5, 2), (1, 0, 3)):
        expected = clip_preprocess(images[image], 14)
        np.testing.assert_array_equal(given["id_pixel_values"][row, column], expected)


@pytest.mark.parametrize("xp", [np, jnp], ids=["numpy", "jax"])
@pytest.mark.parametrize("pictures", ["id_pixel_values", "id_features"])
def test_dropped_references_are_masked(xp, pictures):
    batch = {pictures: xp.ones((2, 4, 3)), "id_mask": xp.ones((2, 4), bool)}
    dropped = References(14).dropped(batch, xp)
    assert list(dropped) == ["id_mask"] and dropped["id_mask"].shape == (2, 4)
    assert dropped["id_mask"].dtype == bool and not dropped["id_mask"].any()


def test_references_are_an_identity_field():
    field = References(14)
    assert field.identity and field.others == 1


def test_two_encoders_read_the_same_references(records, tokenizers):
    """A second field of references has its own size and names, and draws nothing itself."""
    second = References(20, name="face", prefix="face")
    one = photograph_source(records, tokenizers)
    fields = (*photograph_fields(tokenizers), second)
    both = ExampleSource(records, fields, seed=3, size=16)
    for n in range(8):
        example = both.example(n)
        assert example.pop("face_pixel_values").shape == (4, 20, 20, 3)
        assert np.array_equal(example.pop("face_mask"), example["id_mask"])
        assert_same(example, one.example(n))
