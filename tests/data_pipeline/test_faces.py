import sys

import numpy as np
import pytest

from data_pipeline.faces import NoFaceFound, find_face

skimage_data = pytest.importorskip("skimage.data")


def assert_is_her_face(box, scale=1.0):
    """Eyes, nose and mouth of the astronaut, read off the photograph, lie inside a tight box."""
    x0, y0, x1, y1 = np.array(box) / scale
    for x, y in ((208, 102), (243, 102), (226, 122), (226, 146)):
        assert x0 < x < x1 and y0 < y < y1
    assert 80 < x1 - x0 < 140


@pytest.mark.parametrize("scale", [0.5, 1, 2.5])
def test_finds_the_astronaut_at_any_size(scale):
    from PIL import Image

    image = Image.fromarray(skimage_data.astronaut())
    side = round(512 * scale)
    assert_is_her_face(find_face(np.asarray(image.resize((side, side)))), scale)


def test_finds_a_close_up():
    image = np.ascontiguousarray(skimage_data.astronaut()[20:220, 125:325])
    x0, y0, x1, y1 = find_face(image)
    assert_is_her_face((x0 + 125, y0 + 20, x1 + 125, y1 + 20))
    assert all(type(v) is int for v in (x0, y0, x1, y1))


@pytest.mark.parametrize("large_first", [True, False])
def test_takes_the_largest_of_two(large_first):
    small = skimage_data.astronaut()[:256, 100:356]
    large = small[:200, 28:228].repeat(2, 0).repeat(2, 1)
    small = np.pad(small, ((0, 144), (0, 0), (0, 0)))
    pair = [large, small] if large_first else [small, large]
    x0, _, x1, _ = find_face(np.concatenate(pair, 1))
    assert x1 - x0 > 160 and (x0 < 256) == large_first


@pytest.mark.parametrize("name", ["coffee", "rocket"])
def test_no_face(name):
    with pytest.raises(NoFaceFound, match=r"cup\.png.*--no-crop"):
        find_face(getattr(skimage_data, name)(), "cup.png")


@pytest.mark.parametrize("shape", [(1, 1), (3, 800), (64, 64)])
def test_tiny_and_odd_pictures_have_no_face(shape):
    with pytest.raises(NoFaceFound):
        find_face(np.full((*shape, 3), 128, np.uint8))


def test_without_scikit_image_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "skimage.feature", None)
    with pytest.raises(ImportError, match=r"persongen_jax\[faces\]"):
        find_face(np.zeros((64, 64, 3), np.uint8))
