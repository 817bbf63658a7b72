"""What a drawing's client sends is read within limits."""

import zlib
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from persongen_jax.demo.tabs import canvas
from persongen_jax.demo.tabs.form import masks_of

RED = (214, 39, 40)
SIDE = 32


def payload(*paths):
    layers = [path and SimpleNamespace(path=str(path)) for path in paths]
    return SimpleNamespace(background=None, layers=layers, composite=None)


@pytest.fixture
def draw(tmp_path):
    """Writes a layer whose left half is red: (file's name, size) to its path."""

    def draw(name="layer.png", size=(SIDE, SIDE), mode="RGBA"):
        pixels = np.zeros((size[1], size[0], 4), np.uint8)
        pixels[:, : size[0] // 2] = (*RED, 255)
        Image.fromarray(pixels).convert(mode).save(tmp_path / name, lossless=True)
        return tmp_path / name

    return draw


@pytest.mark.parametrize("name", ["layer.png", "layer.webp"])
def test_layers_become_masks(draw, name):
    value = canvas.read(payload(None, draw(name)), SIDE)
    (layer,) = value["layers"]
    assert layer.dtype == np.uint8 and layer.shape == (SIDE, SIDE, 4)
    (mask,) = masks_of(value, [RED])
    assert mask[:, : SIDE // 2].all() and not mask[:, SIDE // 2 :].any()


def test_no_drawing_is_none():
    assert canvas.read(None, SIDE) is None
    assert canvas.read(payload(), SIDE) == {"layers": []}


@pytest.mark.parametrize("size", [(SIDE + 1, 1), (1, SIDE + 1), (9_000, 9_000)])
def test_a_larger_layer_is_refused_by_its_header(tmp_path, draw, size):
    path = draw()
    head = bytearray(path.read_bytes())  # it promises pixels that do not follow
    head[16:24] = size[0].to_bytes(4, "big") + size[1].to_bytes(4, "big")
    head[29:33] = zlib.crc32(head[12:29]).to_bytes(4, "big")
    path.write_bytes(head)
    with pytest.raises(ValueError, match=f"has {size[0]}x{size[1]} pixels: at most 32x32"):
        canvas.read_layer(str(path), SIDE)


def test_other_formats_and_damage_are_refused(draw, tmp_path):
    paths = [draw("a.gif", mode="P"), draw("a.tiff"), draw("a.jpg", mode="RGB")]
    (tmp_path / "cut.png").write_bytes(draw().read_bytes()[:60])
    for path in (*paths, tmp_path / "cut.png", tmp_path / "none.png"):
        with pytest.raises(ValueError, match="the drawing cannot be read"):
            canvas.read_layer(str(path), SIDE)


def test_many_layers_are_refused_unopened(tmp_path):
    missing = [tmp_path / "none.png"] * (canvas.MOST_LAYERS + 1)
    with pytest.raises(ValueError, match="5 layers: use at most 4"):
        canvas.read(payload(*missing), SIDE)


def test_the_component_reads_so_and_keeps_no_blobs(draw):
    gradio = pytest.importorskip("gradio")
    with gradio.Blocks():
        made = canvas.build(["#d62728"], SIDE, "draw", "canvas")
    data = made.data_model(layers=[{"path": str(draw())}])
    assert masks_of(made.preprocess(data), [RED])[0].sum() == SIDE * SIDE // 2
    with pytest.raises(gradio.Error, match="cannot be read"):
        made.preprocess(made.data_model(layers=[{"path": str(draw("a.gif", mode="P"))}]))
    # Gradio runs what it finds by this name for whoever asks.
    assert not getattr(made.accept_blobs, "_is_server_fn", False)
