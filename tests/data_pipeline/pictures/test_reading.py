"""Reading image files: colour profiles, orientation, and files that are no plain images."""

import io
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps, PngImagePlugin, features

from data_pipeline.pictures import formats
from data_pipeline.pictures.reading import ImageError, image_size, load_image, load_mask
from tests.data_pipeline.pictures.noise import PIXELS, picture
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


def test_files_that_are_closed_or_named_too_long(tmp_path):
    with pytest.raises(ImageError, match="closed.*open it again"):
        closed = io.BytesIO()
        closed.close()
        load_image(closed)
    with pytest.raises(ImageError, match="give it a shorter name"):
        load_image(tmp_path / ("x" * 300))


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
