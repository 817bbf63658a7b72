"""Reading images: from files, bytes, PIL images and arrays of every kind."""

import io
import tracemalloc
import zlib

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps, PngImagePlugin, features

from data_pipeline.pictures import formats
from data_pipeline.pictures.reading import ImageError, image_size, load_image, load_mask
from tests.data_pipeline.pictures.profiles import (
    ADOBE,
    D50,
    P3,
    cmyk_profile,
    grey_profile,
    rgb_profile,
    to_xyz,
)

SRGB = ImageCms.createProfile("sRGB")


def picture(height=20, width=30) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


PIXELS = picture()


def converted(image, profile, mode="RGB"):
    """Pillow's own conversion, for an image that is upright and opaque."""
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    return np.asarray(
        ImageCms.profileToProfile(image.convert(mode), source, SRGB, outputMode="RGB")
    )


def by_formula(pixels, primaries, gamma):
    """To sRGB in float64, clipped."""
    srgb = ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06))
    linear = (pixels / 255.0) ** gamma @ to_xyz(primaries).T @ np.linalg.inv(to_xyz(srgb)).T
    linear = linear.clip(0, 1)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


# ---- colour profiles ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["jpg", "png", "webp", "tiff", "avif"])
@pytest.mark.parametrize("primaries, gamma", [(P3, 2.2), (ADOBE, 563 / 256)], ids=["p3", "adobe"])
def test_profiles_are_converted_to_srgb(kind, primaries, gamma, tmp_path):
    if kind == "avif" and not features.check("avif"):
        pytest.skip("this Pillow reads no AVIF")
    smooth = Image.fromarray(picture(4, 6)).resize((60, 40), Image.Resampling.BICUBIC)
    profile, path = rgb_profile(primaries, gamma), tmp_path / f"wide.{kind}"
    smooth.save(path, icc_profile=profile)
    with Image.open(path) as stored:
        raw, wanted = np.asarray(stored.convert("RGB")), converted(stored, profile)
        from_pil = load_image(stored)
    found = load_image(path)
    np.testing.assert_array_equal(found, wanted)
    np.testing.assert_array_equal(from_pil, wanted)
    assert np.abs(found - by_formula(raw, primaries, gamma)).max() < 2
    assert np.abs(found.astype(int) - raw).max() > 10


def test_grey_and_palette_profiles(tmp_path):
    grey, profile = Image.fromarray(picture()).convert("L"), grey_profile(1.8)
    grey.save(tmp_path / "grey.png", icc_profile=profile)
    wanted = converted(grey, profile, "L")
    np.testing.assert_array_equal(load_image(tmp_path / "grey.png"), wanted)
    assert np.abs(wanted.astype(int) - np.asarray(grey)[..., None]).max() > 10
    grey.putalpha(255)
    grey.save(tmp_path / "la.png", icc_profile=profile)
    np.testing.assert_array_equal(load_image(tmp_path / "la.png"), wanted)
    wide = rgb_profile(P3, 2.2)
    few = Image.fromarray(picture()).quantize(16)
    few.save(tmp_path / "palette.png", icc_profile=wide)
    np.testing.assert_array_equal(load_image(tmp_path / "palette.png"), converted(few, wide))
    # A colour profile on a grey file is of R = G = B.
    plain = Image.fromarray(picture()).convert("L")
    plain.save(tmp_path / "plain.png", icc_profile=wide)
    np.testing.assert_array_equal(load_image(tmp_path / "plain.png"), converted(plain, wide))
    lab = ImageCms.profileToProfile(
        Image.fromarray(picture()), SRGB, ImageCms.createProfile("LAB"), outputMode="LAB"
    )
    assert np.abs(load_image(lab).astype(int) - picture()).mean() < 2


def test_cmyk_profiles(tmp_path):
    """By a table, like every CMYK profile: here ink to Lab by a rule that Pillow's own lacks."""
    image = Image.fromarray(np.dstack([picture(), picture()[..., 1] // 4]), "CMYK")
    profile = cmyk_profile()
    for kind in ("jpg", "tiff"):
        image.save(tmp_path / f"ink.{kind}", icc_profile=profile)
        with Image.open(tmp_path / f"ink.{kind}") as stored:
            assert stored.mode == "CMYK"
            wanted, plain = converted(stored, profile, "CMYK"), np.asarray(stored.convert("RGB"))
        found = load_image(tmp_path / f"ink.{kind}")
        np.testing.assert_array_equal(found, wanted)
        assert np.abs(found.astype(int) - plain).max() > 30


def test_srgb_by_name_and_broken_profiles_change_nothing(tmp_path, caplog):
    own = ImageCms.ImageCmsProfile(SRGB).tobytes()
    for name, profile in (("srgb", own), ("broken", b"no profile"), ("grey", grey_profile(1.8))):
        Image.fromarray(picture()).save(tmp_path / f"{name}.png", icc_profile=profile)
        np.testing.assert_array_equal(load_image(tmp_path / f"{name}.png"), picture())
    assert "srgb.png" not in caplog.text
    assert "broken.png: its colour profile cannot be read" in caplog.text
    assert "grey.png: its colour profile is of L, the picture of RGB: taken as sRGB" in caplog.text


def test_other_colour_information_causes_a_warning(tmp_path, caplog):
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0xA001] = 0xFFFF
    exif.get_ifd(0x8769)[0xA005] = {1: "R03", 2: b"0100"}
    Image.fromarray(picture()).save(tmp_path / "camera.jpg", exif=exif)
    info = PngImagePlugin.PngInfo()
    info.add(b"gAMA", (100_000).to_bytes(4, "big"))
    Image.fromarray(picture()).save(tmp_path / "linear.png", pnginfo=info)
    info = PngImagePlugin.PngInfo()
    info.add(b"gAMA", (45_455).to_bytes(4, "big"))
    Image.fromarray(picture()).save(tmp_path / "usual.png", pnginfo=info)
    for name in ("camera.jpg", "linear.png", "usual.png"):
        load_image(tmp_path / name)
    assert "camera.jpg: Adobe RGB by its EXIF, without a profile" in caplog.text
    assert "linear.png: its gamma of 1 is ignored" in caplog.text
    assert "usual.png" not in caplog.text


# ---- orientation -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["jpg", "png", "webp", "tiff"])
def test_every_orientation_is_upright(kind, tmp_path):
    exif = Image.Exif()
    for turn in range(1, 9):
        exif[0x0112] = turn
        path = tmp_path / f"{turn}.{kind}"
        Image.fromarray(picture()).save(path, exif=exif)
        with Image.open(path) as image:
            wanted = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
        with Image.open(path) as image:
            for given in (path, str(path), path.read_bytes(), image):
                np.testing.assert_array_equal(load_image(given), wanted)
        assert image_size(path) == wanted.shape[:2] == ((30, 20) if turn > 4 else (20, 30))
        assert load_mask(path).shape == wanted.shape[:2]


def test_orientation_profile_and_alpha_at_once_in_bands(tmp_path, monkeypatch):
    from data_pipeline.pictures import colours

    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.fromarray(np.dstack([picture(), picture()[..., 0]]))
    image.save(tmp_path / "all.png", exif=exif, icc_profile=rgb_profile(P3, 2.2))
    whole = load_image(tmp_path / "all.png")
    colour = converted(image, rgb_profile(P3, 2.2))
    alpha = picture()[..., :1] / 255
    wanted = np.rot90(colour * alpha + 255 * (1 - alpha), -1)
    assert np.abs(whole - wanted).max() <= 1
    monkeypatch.setattr(colours, "BAND", 100)  # of 30 x 20 pixels: seven of them
    np.testing.assert_array_equal(load_image(tmp_path / "all.png"), whole)


def test_damaged_exif_causes_a_warning_and_the_image_is_read(tmp_path, caplog):
    Image.fromarray(picture()).save(tmp_path / "odd.webp", exif=b"Exif\0\0no EXIF", lossless=True)
    np.testing.assert_array_equal(load_image(tmp_path / "odd.webp"), picture())
    assert "odd.webp: its EXIF data cannot be read" in caplog.text


# ---- modes and depths --------------------------------------------------------------------------


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


# ---- Python's own ------------------------------------------------------------------------------


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


def with_chunk(path, kind: bytes, data: bytes):
    """The PNG with one more chunk after its header."""
    found = path.read_bytes()
    crc = zlib.crc32(kind + data).to_bytes(4, "big")
    chunk = len(data).to_bytes(4, "big") + kind + data + crc
    path.write_bytes(found[:33] + chunk + found[33:])
    return path


def test_code_points_and_primaries_cause_a_warning(tmp_path, caplog):
    p3 = np.int32(np.float64([0.3127, 0.329, 0.68, 0.32, 0.265, 0.69, 0.15, 0.06]) * 1e5)
    chunks = {
        "p3": (b"cICP", bytes([12, 13, 0, 1])),
        "pq": (b"cICP", bytes([9, 16, 0, 1])),
        "primaries": (b"cHRM", p3.astype(">i4").tobytes()),
        "srgb": (b"cICP", bytes([1, 13, 0, 1])),
    }
    for name, (kind, data) in chunks.items():
        path = tmp_path / f"{name}.png"
        Image.fromarray(PIXELS).save(path)
        with_chunk(path, kind, data)
        for given in (path, path.read_bytes()):
            caplog.clear()
            np.testing.assert_array_equal(load_image(given), PIXELS)
            assert ("taken as sRGB" in caplog.text) == (name != "srgb"), name


def test_every_image_gets_its_own_warning(caplog):
    bad = io.BytesIO()
    Image.fromarray(PIXELS).save(bad, "PNG", icc_profile=b"none")
    for _ in range(2):
        load_image(bad.getvalue(), "reference 1")
    assert caplog.text.count("reference 1: its colour profile cannot be read") == 2


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


def test_files_that_are_closed_or_named_too_long(tmp_path):
    with pytest.raises(ImageError, match="closed.*open it again"):
        closed = io.BytesIO()
        closed.close()
        load_image(closed)
    with pytest.raises(ImageError, match="give it a shorter name"):
        load_image(tmp_path / ("x" * 300))


# ---- files that are no plain pictures ----------------------------------------------------------


def test_animations_give_their_first_frame_and_say_so(tmp_path, caplog):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    for kind in ("gif", "webp", "png", "tiff"):
        path = tmp_path / f"two.{kind}"
        frames[0].save(path, save_all=True, append_images=frames[1:], lossless=True)
        assert (load_image(path) == load_image(frames[0])).all()
        load_image(path)
        said = "several pages: the first" if kind == "tiff" else "an animation: its first frame"
        assert caplog.text.count(f"two.{kind}: {said} is taken") == 1
    frames[0].save(tmp_path / "one.gif")
    load_image(tmp_path / "one.gif")
    assert "one.gif" not in caplog.text


def box(brand: bytes) -> bytes:
    return b"\0\0\0\x18ftyp" + brand + bytes(40)


@pytest.mark.parametrize(
    "content, said",
    [
        (b"", "the file is empty: copy it again"),
        (b"no picture", "damaged or of an unsupported format: save it as JPEG or PNG"),
        (b"<!DOCTYPE html><html>", "a web page, not the image itself"),
        (b"<svg xmlns='x'/>", "SVG or other XML"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "PostScript"),
        (b"\xff\x0a" + bytes(40), "JPEG XL"),
        (box(b"crx "), "a raw photograph"),
        (box(b"isom"), "a video"),
        (b"version https://git-lfs.github.com/spec/v1", "Git LFS pointer.*git lfs pull"),
        (b"PK\x03\x04" + bytes(40), "an archive: unpack it"),
    ],
)
def test_other_files_are_named(content, said, tmp_path):
    (tmp_path / "a.jpg").write_bytes(content)
    for read in (load_image, load_mask, image_size):
        with pytest.raises(ImageError, match=rf"a\.jpg: cannot be decoded as an image \(.*{said}"):
            read(tmp_path / "a.jpg")


def test_damaged_files_absent_files_and_folders(tmp_path):
    for kind in ("png", "jpg", "webp", "gif", "bmp", "tiff"):
        whole = io.BytesIO()
        Image.fromarray(picture(64, 64)).save(whole, {"jpg": "JPEG"}.get(kind, kind))
        (tmp_path / f"half.{kind}").write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])
        with pytest.raises(ImageError, match=rf"half\.{kind}: cannot be decoded") as told:
            load_image(tmp_path / f"half.{kind}")
        assert "\n" not in str(told.value)
    with pytest.raises(ImageError, match="a folder, not an image file: name an image in it"):
        load_image(tmp_path)
    with pytest.raises(ImageError, match=r"region 1 \(.*absent.png\): no such image file"):
        load_mask(tmp_path / "absent.png", "region 1")


def test_a_raw_photograph_is_not_its_preview(tmp_path):
    from PIL.TiffImagePlugin import ImageFileDirectory_v2

    tags = ImageFileDirectory_v2()
    tags[254] = 1  # a reduced version of another image in the file
    Image.fromarray(picture()).save(tmp_path / "a.tiff", tiffinfo=tags)
    Image.fromarray(picture()).save(tmp_path / "b.tiff")
    (tmp_path / "b.tiff").rename(tmp_path / "b.nef")
    for name in ("a.tiff", "b.nef"):
        with pytest.raises(ImageError, match="a raw photograph, .*: develop it"):
            load_image(tmp_path / name)


def test_large_pictures_are_refused_by_their_header(tmp_path):
    Image.new("1", (10_001, 10_000)).save(tmp_path / "large.png")
    Image.new("1", (20_000, 10_000)).save(tmp_path / "huge.png")
    tracemalloc.start()
    for name, size in (("large", "10001x10000 pixels"), ("huge", "200 megapixels")):
        for read in (load_image, load_mask, image_size):
            with pytest.raises(
                ImageError, match=f"{name}.png: {size} exceed the limit of 100 mega"
            ):
                read(tmp_path / f"{name}.png")
    with pytest.raises(ImageError, match="100 megapixels: scale the image down"):
        load_image((tmp_path / "large.png").read_bytes())
    assert tracemalloc.get_traced_memory()[1] < 1e7
    tracemalloc.stop()


def test_heic_is_read_or_the_library_named(tmp_path, monkeypatch):
    (tmp_path / "a.heic").write_bytes(box(b"heic"))
    monkeypatch.setattr(formats, "_reads_heif", lambda: False)
    monkeypatch.setattr(formats, "_register_heif", lambda: False)
    with pytest.raises(ImageError, match=r"pip install 'persongen_jax\[heic\]', or save it as"):
        load_image(tmp_path / "a.heic")


def test_heic_by_the_library(tmp_path):
    pillow_heif = pytest.importorskip("pillow_heif")
    exif = Image.Exif()
    exif[0x0112] = 6
    smooth = Image.fromarray(picture(4, 6)).resize((96, 64), Image.Resampling.BICUBIC)
    profile = rgb_profile(P3, 2.2)
    file = pillow_heif.from_pillow(smooth)
    file.info["exif"], file.info["icc_profile"] = exif.tobytes(), profile
    file.save(tmp_path / "a.heic", quality=95)
    wanted = np.rot90(converted(smooth, profile), -1)
    for given in (tmp_path / "a.heic", (tmp_path / "a.heic").read_bytes()):
        assert np.abs(load_image(given).astype(int) - wanted).mean() < 3
    assert image_size(tmp_path / "a.heic") == (96, 64)
    (tmp_path / "half.heic").write_bytes((tmp_path / "a.heic").read_bytes()[:40])
    for given in (tmp_path / "half.heic", box(b"heic")):
        with pytest.raises(ImageError, match="HEIC that is damaged: copy it again"):
            load_image(given)


def test_the_profiles_of_this_test_are_what_they_say():
    """White stays white, and the primaries' sum is the white point."""
    np.testing.assert_allclose(to_xyz(P3).sum(1), D50, atol=1e-3)
    assert (load_image(Image.new("RGB", (2, 2), "white")) == 255).all()
