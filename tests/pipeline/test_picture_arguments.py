"""Images as arguments in Python: references, regions, control images, edits, judges."""

import io
import warnings

import numpy as np
import pytest
from PIL import Image

from data_pipeline.examples.fields import Call
from data_pipeline.examples.spatial import ControlImage
from data_pipeline.faces.find import crop_face
from data_pipeline.pictures.reading import ImageError, load_image
from persongen_jax.diffusion.conditioning import region_arrays, to_region
from persongen_jax.generate.files import read_references
from persongen_jax.pipeline.attributes import AttributePipeline
from persongen_jax.pipeline.conditioner import check_people, read_people

FACE = np.random.default_rng(0).integers(0, 256, (24, 20, 3), np.uint8)


@pytest.fixture
def turned(tmp_path):
    """A file stored on its side, and its upright image."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(FACE).save(tmp_path / "turned.png", exif=exif)
    return tmp_path / "turned.png", np.rot90(FACE, -1)


def test_references_of_every_kind_are_read_alike(turned):
    path, upright = turned
    with Image.open(path) as image, path.open("rb") as file:
        kinds = [path, str(path), image, file, path.read_bytes(), io.BytesIO(path.read_bytes())]
        kinds += [upright, upright / 255.0, np.dstack([upright, np.full((20, 24), 255, np.uint8)])]
        for given in kinds:
            people = check_people([[given], [given, given]], None, 2)
            for row in read_people(people):
                for picture in row[0]:
                    np.testing.assert_array_equal(picture, upright)


def test_a_reference_at_fault_is_named(turned):
    path, upright = turned
    good, bad = upright, upright.astype(np.float32)
    with pytest.raises(ImageError, match="^reference 2 of prompt 3: .*0..1"):
        read_people([[[good]], [[good]], [[good, bad]]])
    with pytest.raises(ImageError, match="^reference 1 of person 2 of prompt 1: NoneType: give a"):
        read_people([[[good], [None]]])
    with pytest.raises(ImageError, match=r"^reference 1 of prompt 1 \(nobody.jpg\): no such image"):
        read_people([[["nobody.jpg"]]])


def test_a_reference_that_prompts_share_is_read_once(turned):
    (one, other) = read_people([[[turned[0]]], [[turned[0]]]])
    assert one[0][0] is other[0][0]


@pytest.mark.parametrize("regions", ["mask.png", ["mask.png"], np.ones((1, 1, 4, 4))])
def test_a_mask_in_place_of_a_list_is_refused(regions):
    with pytest.raises(ValueError, match=r"regions: .* where a list belongs; .*\[\[mask\]\]"):
        check_people([[[FACE]]], regions, 1)


def test_regions_of_every_kind_and_an_empty_one_is_said(tmp_path):
    left = np.zeros((8, 8), np.uint8)
    left[:, :4] = 255
    Image.fromarray(left).save(tmp_path / "mask.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.rot90(left)).save(tmp_path / "turned.png", exif=exif)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for given in (left, tmp_path / "mask.png", str(tmp_path / "turned.png"), left > 0):
            np.testing.assert_array_equal(to_region(given, 2, 2), [[1, 0], [1, 0]])
    people = [[[FACE], [FACE]], [[FACE]]]
    with pytest.warns(UserWarning, match="region 2 of prompt 1 is empty .*: it acts nowhere"):
        region_arrays([[left, left * 0], [left]], people, 4, 4)
    with pytest.raises(ImageError, match="region 1 of prompt 2: .*int64"):
        region_arrays([[left, left], [left.astype(np.int64)]], people, 4, 4)


def test_masks_of_generate_are_read_before_the_base(tmp_path, turned):
    items = [f"{turned[0]}@{tmp_path / 'nothing.png'}"]
    with pytest.raises(ImageError, match="nothing.png: no such image file"):
        read_references(items, "", base=None, detector="yunet", crop=False)
    Image.new("L", (4, 4), 255).save(tmp_path / "mask.png")
    items = [f"{turned[0]}@{tmp_path / 'mask.png'}"]
    crops, regions = read_references(items, "", base=None, detector="yunet", crop=False)
    np.testing.assert_array_equal(crops[0][0], turned[1])
    assert (regions[0] == 1).all()


def test_control_images_of_every_kind(turned):
    path, upright = turned
    time_ids = np.zeros((1, 6), np.float32)
    for given in (path, path.read_bytes(), Image.open(path), upright, upright / 255.0):
        call = Call(["a man"], {}, None, time_ids, (20, 24), {"pose": [given]})
        found = ControlImage("pose").given(call)["pose"]
        np.testing.assert_allclose(found[0] * 255, upright, atol=1e-3)
    call = Call(["a man"], {}, None, time_ids, (20, 24), {"pose": [upright * 1.0]})
    with pytest.raises(ImageError, match="pose image 1: .*0..1"):
        ControlImage("pose").given(call)


@pytest.mark.parametrize("channels", [1, 3])
def test_edits_read_every_kind(turned, channels):
    pipe = AttributePipeline.__new__(AttributePipeline)
    pipe.__class__ = type("Pipe", (AttributePipeline,), {"size": (20, 20, channels)})
    path, upright = turned
    wanted = pipe.read(upright)
    assert wanted.shape == (20, 20, channels) and wanted.dtype == np.uint8
    with Image.open(path) as image, path.open("rb") as file:
        for given in (path, str(path), path.read_bytes(), file, image, upright / 255.0):
            np.testing.assert_array_equal(pipe.read(given), wanted)
    with pytest.raises(ImageError, match="^image: an array float64 .*0..1"):
        pipe.read(upright * 1.0)
    with pytest.raises(ImageError, match=r"^image \(none.png\): no such image file"):
        pipe.read("none.png")


def test_a_face_is_cropped_from_a_path(sample_photos):
    path = sample_photos / "astronaut.png"
    np.testing.assert_array_equal(crop_face(path), crop_face(load_image(path)))
