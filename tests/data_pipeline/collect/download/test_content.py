"""What becomes of a file's bytes."""

import errno
import io
import os
import signal

import numpy as np
import pytest
from PIL import Image, ImageCms

from data_pipeline.collect.download import decoders
from data_pipeline.collect.download.content import decode
from data_pipeline.collect.download.outcomes import Failed
from tests.helpers.bad_server import PAGE, bomb, picture, turned


@pytest.fixture
def decoded(tmp_path, monkeypatch):
    """decoded(bytes) -> (what decode says, the picture that it wrote)."""
    # decode is meant for a process of its own, and sets the limit for it.
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)

    def run(data, max_pixels=1_000_000):
        source = tmp_path / "source"
        source.write_bytes(data)
        said = decode(str(source), str(tmp_path / "out"), max_pixels, 95)
        image = Image.open(tmp_path / f"out{said.ending}")
        image.load()
        return said, image

    return run


def as_file(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize(
    "kind, ending", [("JPEG", ".jpg"), ("PNG", ".png"), ("WEBP", ".jpg"), ("AVIF", ".jpg")]
)
def test_formats(decoded, kind, ending):
    said, image = decoded(picture(1, kind))
    assert (said.width, said.height, said.ending, said.rotated) == (24, 24, ending, False)
    assert image.mode == "RGB" and said.bytes == os.stat(image.filename).st_size


def test_png_keeps_every_pixel(decoded):
    _, image = decoded(picture(1, "PNG"))
    before = Image.open(io.BytesIO(picture(1, "PNG")))
    assert np.array_equal(np.asarray(image), np.asarray(before))


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_full_disk_is_no_fault_of_the_picture(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
    resource = pytest.importorskip("resource")
    data, source = picture(1, kind, side=200), tmp_path / "source"
    source.write_bytes(data)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(data) // 2, hard))
        with pytest.raises(OSError) as found:
            decode(str(source), str(tmp_path / "out"), 1_000_000, 95)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert found.value.errno == errno.EFBIG


def test_turned_and_without_metadata(decoded):
    said, image = decoded(turned())
    assert (said.width, said.height, said.rotated) == (12, 24, True)
    # What was left is at the top after a turn to the right.
    assert np.asarray(image)[:6].mean() > 240 and np.asarray(image)[10:].mean() < 15
    assert not image.getexif() and b"GPS" not in open(image.filename, "rb").read()
    assert not image.info.keys() & {"exif", "icc_profile", "xmp", "comment"}


def test_the_first_picture_of_several_as_phones_write_them(decoded):
    more = [Image.new("RGB", (8, 8), "white")]
    data = as_file(Image.new("RGB", (8, 4), "black"), "MPO", save_all=True, append_images=more)
    said, image = decoded(data)
    assert (said.width, said.height) == (8, 4) and np.asarray(image).max() < 5


def test_printers_colours(decoded):
    said, image = decoded(as_file(Image.new("CMYK", (4, 4), (0, 255, 255, 0)), "JPEG"))
    assert said.ending == ".jpg" and (np.asarray(image)[0, 0] // 64 == [3, 0, 0]).all()


def test_broken_exif_costs_nothing(decoded):
    data = as_file(Image.new("RGB", (20, 10)), "JPEG", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff")
    said, _ = decoded(data)
    assert (said.width, said.height, said.rotated) == (20, 10, False)


def test_transparency_is_white_and_profiles_are_applied(decoded):
    _, image = decoded(as_file(Image.new("RGBA", (4, 4), (255, 0, 0, 0)), "PNG"))
    assert np.all(np.asarray(image) == 255)
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    plain, _ = decoded(as_file(Image.new("RGB", (4, 4), (9, 9, 9)), "PNG", icc_profile=lab))
    assert plain.width == 4  # a profile of another space is ignored


def test_the_first_frame_of_an_animation(decoded):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("black", "white")]
    data = as_file(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    _, image = decoded(data)
    assert np.asarray(image).max() < 5


@pytest.mark.parametrize(
    "data, reason, value",
    [
        (PAGE, "not a picture", "a page or XML"),
        (b"\n <svg xmlns=''>", "not a picture", "a page or XML"),
        (b"", "not a picture", "an empty file"),
        (picture(1, "GIF"), "not a picture", "GIF"),
        (b"\x00\x00\x00\x18ftypheic", "not a picture", "the container 'heic'"),
        (b"nonsense", "not a picture", "bytes 6e 6f 6e 73 65 6e 73 65"),
        (bomb(), "too many pixels", 60_000**2),
        (bomb(1200), "too many pixels", 1200**2),  # Pillow itself would only warn
        (picture(1, side=200)[:9000], "damaged", None),
        (picture(1, "PNG")[:200], "damaged", None),
        (b"\x89PNG\r\n\x1a\n" + bytes(50), "damaged", "its header cannot be read"),
    ],
)
def test_what_is_not_used(decoded, data, reason, value):
    with pytest.raises(Failed) as caught:
        decoded(data)
    assert caught.value.reason == reason and value in (caught.value.value, None)
    assert not caught.value.again


def test_a_decoder_that_dies_or_hangs_costs_its_picture(tmp_path):
    """Signals take the part of the hostile file."""
    (tmp_path / "good").write_bytes(picture(1))
    pool = decoders.Decoders(1, 10**6, 95, timeout=20)
    try:
        first = pool.decode(tmp_path / "good", tmp_path / "out")
        (only,) = pool._all
        os.kill(only._process.pid, signal.SIGKILL)
        with pytest.raises(Failed, match="decoder ended by SIGKILL"):
            pool.decode(tmp_path / "good", tmp_path / "out")
        assert pool.decode(tmp_path / "good", tmp_path / "out") == first
        os.kill(only._process.pid, signal.SIGSTOP)
        only._timeout = 0.2
        with pytest.raises(Failed, match="decoder no answer"):
            pool.decode(tmp_path / "good", tmp_path / "out")
        with pytest.raises(FileNotFoundError):  # space and rights are no fault of the picture
            only._timeout = 20
            pool.decode(tmp_path / "good", tmp_path / "absent" / "out")
    finally:
        pool.close()
