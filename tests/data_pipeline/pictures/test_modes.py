"""Modes, depths and forms of images and masks, in memory and in files."""

import io

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from data_pipeline.pictures import formats
from data_pipeline.pictures.reading import ImageError, load_image, load_mask
from tests.data_pipeline.pictures.noise import PIXELS, picture


def test_transparency_is_blended_on_white(tmp_path):
    half = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    half.paste((0, 0, 255, 255), (0, 0, 4, 8))
    palette = Image.new("P", (8, 8), 1)
    palette.putpalette([0, 0, 255, 255, 0, 0])
    palette.paste(0, (0, 0, 4, 8))
    half.save(tmp_path / "rgba.png")
    palette.save(tmp_path / "palette.png", transparency=1)
    palette.save(tmp_path / "palette.gif", transparency=1)
    for given in ("rgba.png", "palette.png", "palette.gif"):
        image = load_image(tmp_path / given)
        assert (image[:, :4] == (0, 0, 255)).all() and (image[:, 4:] == 255).all()
    assert (load_image(half.convert("RGBa"))[:, 4:] == 255).all()
    for mode in ("LA", "La"):
        assert (load_image(half.convert("LA").convert(mode))[:, 4:] == 255).all()


def test_deep_pictures_are_scaled(tmp_path):
    deep = np.linspace(0, 65535, 600).astype(np.uint16).reshape(20, 30)
    wanted = np.rint(deep / 257)[..., None]
    Image.fromarray(deep).save(tmp_path / "deep.png")
    Image.fromarray(deep).save(tmp_path / "deep.tiff")
    (tmp_path / "deep.pgm").write_bytes(b"P5 30 20 65535\n" + deep.astype(">u2").tobytes())
    Image.fromarray((deep / 65535).astype(np.float32)).save(tmp_path / "float.tiff")
    Image.fromarray(deep.astype(np.int32)).save(tmp_path / "whole.tiff")
    for name in ("deep.png", "deep.tiff", "deep.pgm", "float.tiff", "whole.tiff"):
        found = load_image(tmp_path / name)
        assert found.shape == (20, 30, 3) and np.abs(found - wanted).max() <= 1, name
        assert np.abs(load_mask(tmp_path / name) - deep / 65535).max() < 1 / 254, name
    Image.fromarray(np.full((4, 4), 70000, np.int32)).save(tmp_path / "more.tiff")
    Image.fromarray(np.full((4, 4), 200, np.float32)).save(tmp_path / "far.tiff")
    for name, said in (("more", "32 bits, 70000"), ("far", "200 to 200: floats must be in 0")):
        with pytest.raises(ImageError, match=rf"{name}\.tiff: .*{said}"):
            load_image(tmp_path / f"{name}.tiff")


def test_other_modes():
    flags = np.arange(600).reshape(20, 30) % 3 == 0
    np.testing.assert_array_equal(load_image(Image.fromarray(flags))[..., 1], flags * 255)
    for mode in ("CMYK", "YCbCr", "HSV", "RGBX"):
        found = load_image(Image.fromarray(picture()).convert(mode))
        assert np.abs(found.astype(int) - picture()).mean() < 2, mode


def test_every_form_of_image_is_read(tmp_path):
    path, pixels = tmp_path / "a.png", picture()
    Image.fromarray(pixels).save(path)
    with path.open("rb") as file, Image.open(path) as image:
        kinds = [path, str(path), path.read_bytes(), bytearray(path.read_bytes()), file, file]
        kinds += [io.BytesIO(path.read_bytes()), image, image.convert("RGBA"), pixels]
        kinds += [pixels / np.float32(255), pixels / 255.0, jnp.asarray(pixels) / 255]
        kinds += [np.dstack([pixels, np.full((20, 30), 255, np.uint8)])]
        for given in kinds:
            np.testing.assert_array_equal(load_image(given), pixels)
    grey = pixels[..., 0]
    for given in (grey, grey[..., None], grey / 255.0):
        np.testing.assert_array_equal(load_image(given), np.stack([grey] * 3, -1))
    rough = load_image(jnp.asarray(pixels / 255.0, jnp.bfloat16)).astype(int)
    assert np.abs(rough - pixels).max() <= 1


@pytest.mark.parametrize(
    "given, said",
    [
        (picture().astype(np.float32), "values 0 to 255: floats must be in 0..1: divide by"),
        (picture() / 127.5 - 1, "values -1 to 1: floats must be in 0..1: scale them"),
        (np.full((4, 4, 3), np.nan), "NaN"),
        (picture().astype(np.int64), "int64 .*, give uint8 of 0 to 255, or float"),
        (picture() > 3, "bool .*, give uint8"),
        (picture().transpose(2, 0, 1), "channels come last"),
        (picture()[None], "without the batch's axis"),
        (np.zeros((0, 4, 3), np.uint8), r"\(0, 4, 3\)"),
        (np.zeros((4, 4, 2), np.uint8), r"\(4, 4, 2\)"),
        (None, "NoneType: give a path"),
        (7, "int: give a path"),
        (io.StringIO("text"), 'open it with "rb"'),
        (b"", "the file is empty"),
        (Image.new("RGB", (100, 2)), "100x2 pixels are too narrow a strip"),
    ],
)
def test_invalid_images_are_refused(given, said):
    with pytest.raises(ImageError, match=f"^reference 2 of prompt 1: .*({said})") as told:
        load_image(given, "reference 2 of prompt 1")
    assert "\n" not in str(told.value)


def test_masks_of_every_kind(tmp_path):
    left = np.zeros((8, 10), bool)
    left[:, :5] = True
    white = Image.fromarray(left)
    clear = Image.new("RGBA", (10, 8), (255, 255, 255, 0))
    clear.paste((255, 255, 255, 255), (0, 0, 5, 8))
    white.save(tmp_path / "mask.png")
    bytes_ = left * np.uint8(255)
    kinds = [left, left.astype(np.float16), bytes_, bytes_[..., None], np.dstack([bytes_] * 3)]
    kinds += [white, white.convert("L"), white.convert("P"), white.convert("RGB"), clear]
    kinds += [np.dstack([left] * 3), Image.fromarray(left * np.uint16(65535))]
    kinds += [tmp_path / "mask.png", (tmp_path / "mask.png").read_bytes()]
    for given in kinds:
        found = load_mask(given)
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, left)
    np.testing.assert_allclose(load_mask(np.full((2, 2), 51, np.uint8)), 0.2)
    assert load_mask(white.convert("RGB").convert("LAB")).max() == 1
    ones = left * np.uint8(1)
    Image.fromarray(ones).save(tmp_path / "ones.png")
    faint = (
        ones,
        ones * 2,
        tmp_path / "ones.png",
        Image.fromarray(ones),
        np.dstack([ones * 7] * 3),
    )
    faults = [(left * 1, "int64"), (left * 2.0, "0 to 2"), (np.dstack([ones] * 3), "0 and 1")]
    faults += [(given, "whitest value is [127] of 255.*give 0 and 255") for given in faint]
    for bad, said in faults:
        with pytest.raises(ImageError, match=f"region 1 of prompt 3.*: .*{said}"):
            load_mask(bad, "region 1 of prompt 3")


def test_eight_bits_in_a_deeper_mode_are_not_read_as_black(tmp_path):
    grey = Image.fromarray(PIXELS[..., 0])
    grey.convert("I").save(tmp_path / "a.tiff")
    for given in (grey.convert("I"), grey.convert("I;16"), tmp_path / "a.tiff"):
        for read in (load_image, load_mask):
            with pytest.raises(ImageError, match="none above .* would be black: save it with 8"):
                read(given)
    assert load_image(Image.new("I;16", (4, 4))).max() == 0
    with pytest.raises(ImageError, match="nothing but 0 and 1: give 0 and 255"):
        load_image(PIXELS // 255)


def test_floats_may_go_a_little_beyond_1_and_not_more():
    just = np.float32([[0, 1.004], [-0.004, 0.5]])
    np.testing.assert_array_equal(load_image(just)[..., 0], [[0, 255], [0, 128]])
    with pytest.raises(ImageError, match=r"0 to 1\.02: floats must be in 0\.\.1"):
        load_image(np.float32([[0, 1.02]]))


def test_a_deep_scan_in_which_white_is_zero(tmp_path):
    deep = Image.fromarray(PIXELS[..., 0] * np.uint16(257))
    deep.save(tmp_path / "plain.tiff")
    deep.save(tmp_path / "negative.tiff", tiffinfo={262: 0})
    plain, negative = load_image(tmp_path / "plain.tiff"), load_image(tmp_path / "negative.tiff")
    np.testing.assert_array_equal(negative, 255 - plain)


def test_limits_hold_for_pictures_in_memory(monkeypatch):
    monkeypatch.setattr(formats, "MAX_PIXELS", 15)
    for given in (np.zeros((4, 4), np.uint8), Image.new("1", (4, 4)), np.zeros((4, 4, 3))):
        with pytest.raises(ImageError, match="4x4 pixels exceed"):
            load_image(given)


def test_tensors_that_numpy_cannot_read():
    torch = pytest.importorskip("torch")
    tensor = torch.zeros(4, 4, 3)
    assert load_image(tensor).shape == (4, 4, 3)
    for given in (tensor.clone().requires_grad_(), tensor.to(torch.bfloat16)):
        with pytest.raises(ImageError, match=r"a Tensor that numpy cannot read.*\.detach\(\)"):
            load_image(given)
