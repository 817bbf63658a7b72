"""The canvas on which somebody paints; what its client sends is read within limits."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from persongen_jax.demo.sessions import sentence

MOST_LAYERS = 4
FORMATS = ("PNG", "WEBP")  # what browsers and Gradio write


def build(colours: Sequence[str], side: int, label: str, name: str) -> Any:
    """A white square to paint on, Gradio's ImageEditor; its value is what ``read`` returns.

    Args:
        colours: of the brush, such as "#d62728".
        side: pixels.
        name: its id on the page.
    """
    import gradio as gr

    white = np.full((side, side, 3), 255, np.uint8)
    canvas: Any = gr.ImageEditor(
        value={"background": white, "layers": [], "composite": white},
        label=label,
        type="numpy",
        image_mode="RGBA",
        brush=gr.Brush(colors=list(colours), default_size=60, color_mode="fixed"),
        sources=[],
        transforms=[],
        canvas_size=(side, side),
        elem_id=name,
    )

    def preprocess(payload):
        try:
            return read(payload, side)
        except ValueError as error:
            raise sentence(error) from error

    canvas.preprocess = preprocess
    # Pages that follow every stroke send it there, and Gradio keeps what is sent without a limit.
    # This one sends files, when a button is clicked.
    canvas.accept_blobs = None
    return canvas


def read(payload: Any, side: int) -> dict[str, list[np.ndarray]] | None:
    """{"layers": uint8 [h, w, 4] each} of Gradio's EditorData; the rest of it is not opened.

    Raises:
        ValueError: more than MOST_LAYERS; a layer that ``read_layer`` does not take.
    """
    if payload is None:
        return None
    layers = [layer for layer in payload.layers or () if layer is not None]
    if len(layers) > MOST_LAYERS:
        raise ValueError(f"the drawing has {len(layers)} layers: use at most {MOST_LAYERS}")
    return {"layers": [read_layer(layer.path, side) for layer in layers]}


def read_layer(path: str, side: int) -> np.ndarray:
    """uint8 RGBA [h, w, 4] of a file, of at most ``side`` pixels each way.

    Raises:
        ValueError: it is no PNG or WebP, or larger, which its header says already; or damaged.
    """
    try:
        with Image.open(path, formats=FORMATS) as image:  # the header alone
            width, height = image.size
            if max(width, height) <= side:
                return np.asarray(image.convert("RGBA"))
    except Exception as error:  # decoders raise almost anything
        raise ValueError("the drawing cannot be read: draw it again") from error
    raise ValueError(f"the drawing has {width}x{height} pixels: at most {side}x{side}")
