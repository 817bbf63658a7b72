"""Files of generated images say that they are generated, unless asked not to."""

import io
import warnings
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from skimage import data

from persongen_jax.pipeline import save_images
from persongen_jax.pipeline.checks import CallWarning
from persongen_jax.pipeline.saving import ImageWriter, to_rgb
from persongen_jax.pipeline.watermark import WATERMARK_BITS, has_watermark, read_watermark

GENERATED = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
RDF = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}"
SOURCE_TYPE = "{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType"


def source_type(path):
    """What the XMP packet of a file says, read as XML; None without a packet."""
    with Image.open(path) as image:
        packet = image.info.get("xmp")
    if packet is None:
        return None
    packet = packet.decode() if isinstance(packet, bytes) else packet
    assert packet.startswith("<?xpacket begin=") and packet.endswith("?>")
    root = ElementTree.fromstring(packet)
    assert root.tag == "{adobe:ns:meta/}xmpmeta"
    (description,) = root.findall(f"{RDF}RDF/{RDF}Description")
    assert description.attrib == {f"{RDF}about": ""}
    return description.findtext(SOURCE_TYPE)


def pixels(path):
    return np.asarray(Image.open(path))


@pytest.fixture(scope="module")
def photo():
    return data.astronaut()


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.JPEG", "a.webp"])
def test_the_marks_are_in_the_file_or_neither_is(name, photo, tmp_path):
    (path,) = save_images([Image.fromarray(photo)], tmp_path / "new" / name)
    assert path == tmp_path / "new" / name
    assert has_watermark(pixels(path)) and source_type(path) == GENERATED
    assert [file.name for file in path.parent.iterdir()] == [name]

    (plain,) = save_images([Image.fromarray(photo)], [tmp_path / name], mark=False)
    assert not has_watermark(pixels(plain)) and source_type(plain) is None
    if name.endswith(("png", "webp")):
        assert np.array_equal(pixels(plain), photo)
    else:
        assert np.abs(pixels(plain).astype(int) - photo).mean() < 2


def test_a_folder_is_numbered_on_and_arrays_are_images(photo, tmp_path):
    floats = np.stack([photo, photo[::-1]]).astype(np.float32) / 255
    paths = save_images(floats, tmp_path, mark=False)
    paths += save_images(photo, str(tmp_path), mark=False)
    paths += save_images(photo[..., :1], tmp_path, mark=False)
    assert [path.name for path in paths] == [f"{n:05d}.png" for n in range(4)]
    for path, wanted in zip(paths, (photo, photo[::-1], photo, photo[..., [0] * 3]), strict=True):
        assert np.array_equal(pixels(path), wanted)


@pytest.mark.parametrize("mode", ["PIL", "one channel", "digits"])
def test_grey_images_are_marked_too(mode, tmp_path):
    grey = data.camera()
    if mode == "digits":  # white strokes on black, where every other channel is at an end
        grey = np.zeros((280, 280), np.uint8)
        grey[40:240, 120:160] = 255
    image = Image.fromarray(grey) if mode == "PIL" else grey[..., None]
    (path,) = save_images(image, tmp_path)
    assert has_watermark(pixels(path)) and source_type(path) == GENERATED
    assert np.abs(pixels(path).mean(-1) - grey).mean() < 4


def test_small_images_have_metadata_and_this_is_said_once(tmp_path):
    small = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), np.uint8)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        paths = save_images(small, tmp_path)
    assert [w.category for w in said] == [CallWarning] and said[0].filename == __file__
    assert str(said[0].message).startswith("no watermark: 64x64 pixels are too few")
    for path, image in zip(paths, small, strict=True):
        assert source_type(path) == GENERATED and np.array_equal(pixels(path), image)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save_images(small, tmp_path, mark=False)


def test_every_frame_of_an_animation_is_marked(photo, tmp_path):
    path = ImageWriter().animation([photo, photo[:, ::-1]], tmp_path / "a.webp", 200)
    with Image.open(path) as animation:
        assert animation.n_frames == 2 and animation.info["loop"] == 0
        for frame in range(2):
            animation.seek(frame)
            assert has_watermark(np.asarray(animation.convert("RGB")))
    assert source_type(path) == GENERATED


def test_what_the_watermark_survives(photo, tmp_path):
    """The figures of docs/marking.md for this photograph."""
    (path,) = save_images(photo, tmp_path)
    marked = Image.open(path)

    def agreeing(image):
        return int((read_watermark(np.asarray(image)) == WATERMARK_BITS).sum())

    def again(**options):
        file = io.BytesIO()
        marked.save(file, **options)
        return agreeing(Image.open(file))

    def resized(*sides):
        image = marked
        for side in sides:
            image = image.resize((side, side), Image.Resampling.LANCZOS)
        return agreeing(image)

    assert agreeing(marked) == again(format="WEBP", lossless=True) == 48
    assert again(format="JPEG", quality=90, subsampling=0) == 48
    assert resized(384, 512) >= 46
    # 34 say that it is there; by chance 24 agree.
    assert again(format="JPEG", quality=75) < 34 and again(format="WEBP", quality=80) < 34
    assert resized(448) < 34 and agreeing(np.asarray(marked)[3:, 3:]) < 34


@pytest.mark.parametrize(
    ("images", "where", "named"),
    [
        ([], "out", "images: none"),
        (None, "out", "images: NoneType; give a list of images, or an array"),
        ("a.png", "out", "images: str"),
        ([np.zeros((8, 8, 2), np.uint8)], "out", r"an image uint8 \[8, 8, 2\]: give PIL images"),
        ([np.full((8, 8, 3), 2.0)], "out", "floats in 0..1"),
        ([np.full((8, 8, 3), np.nan)], "out", "floats in 0..1"),
        ([Image.new("RGBA", (8, 8))], "out", "mode RGBA: give RGB or L"),
        (
            np.zeros((2, 8, 8, 3)),
            "a.png",
            "2 images for 1 files: give a folder",
        ),
        (np.zeros((8, 8, 3)), None, "where: NoneType; give a folder"),
        (np.zeros((8, 8, 3)), ["a.gif"], r"a\.gif: images are written as \.png, \.jpg"),
    ],
)
def test_what_cannot_be_saved_is_one_sentence(images, where, named, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=named):
        save_images(images, where)
    with pytest.raises(ValueError, match="mark is 'no': give True or False"):
        save_images(np.zeros((8, 8, 3)), "out", mark="no")
    assert not list(tmp_path.iterdir())


def test_a_file_that_cannot_be_written_is_named(photo, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OSError, match=r"file/a\.png: cannot be written"):
        save_images(photo, tmp_path / "file" / "a.png")
    with pytest.raises(NotADirectoryError, match="name another folder"):
        save_images(photo, tmp_path / "file")


def test_pixels_are_what_a_pil_image_shows(photo):
    assert np.array_equal(to_rgb(Image.fromarray(photo)), photo)
    assert np.array_equal(to_rgb(photo[..., 0]), photo[..., [0] * 3])
