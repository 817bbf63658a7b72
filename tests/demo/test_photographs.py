"""Uploads are read within limits; what is no photograph is one sentence."""

import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image

from data_pipeline.faces.find import NoFaceFound
from data_pipeline.pictures.reading import ImageError
from persongen_jax.demo import photographs
from persongen_jax.demo.offers import ASSETS
from persongen_jax.demo.strangers import COUNT, SIDE, draw_strangers
from persongen_jax.face_detectors import open_reference_detector


def bomb(path, side):
    """A PNG whose header promises ``side`` squared pixels."""

    def chunk(kind, data):
        check = zlib.crc32(kind + data).to_bytes(4, "big")
        return len(data).to_bytes(4, "big") + kind + data + check

    header = side.to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0])
    body = zlib.compress(bytes(1 << 16))
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("kind", ["zip", "bomb", "large", "svg", "text", "empty"])
def test_what_is_no_photograph_is_one_sentence(kind, tmp_path):
    path = tmp_path / "<b>me.png"
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("../../etc/passwd", "x" * 100)
    elif kind in ("bomb", "large"):
        bomb(path, 60_000 if kind == "bomb" else 8_000)
    elif kind == "svg":
        path.write_text('<svg xmlns="http://www.w3.org/2000/svg"><script>a()</script></svg>')
    else:
        path.write_text("hello" if kind == "text" else "")
    with pytest.raises(ImageError) as raised:
        photographs.read_photograph(str(path), "Photograph 1")
    said = str(raised.value)
    # Neither the place on the server nor the file's name.
    assert ("more than 50 million" in said) == (kind == "large")
    assert said.startswith("Photograph 1: ") and str(tmp_path) not in said and "<b>" not in said


def test_faces_of_a_stranger_are_found_and_shown(tmp_path):
    files = draw_strangers(tmp_path)
    assert len(files) == COUNT
    image = photographs.read_photograph(files[0])
    assert image.shape == (SIDE, SIDE, 3)
    detector = open_reference_detector(ASSETS / "sdxl")
    (face,) = photographs.find_faces(image, detector)
    crop = photographs.crop_of(image, photographs.choose_face(image, detector, 0, "it"))
    assert crop.shape[0] == crop.shape[1] < SIDE
    shown = photographs.with_boxes(image, [face, face], 1)
    assert isinstance(shown, Image.Image) and shown.size == (SIDE, SIDE)
    assert (np.asarray(shown) != image).any()
    with pytest.raises(NoFaceFound, match="it: it has 1 faces"):
        photographs.choose_face(image, detector, 1, "it")
    with pytest.raises(NoFaceFound, match="it: no face is found"):
        photographs.choose_face(np.full((64, 64, 3), 200, np.uint8), detector, 0, "it")
