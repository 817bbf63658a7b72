"""The page's own kinds of input."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.pictures.reading import ImageError
from persongen_jax.demo import folders
from persongen_jax.demo.photographs import read_photograph
from persongen_jax.demo.sessions import sentence
from persongen_jax.demo.site import Site


@dataclass(frozen=True, eq=False)
class Upload:
    """An uploaded photograph, uint8 RGB [h, w, 3], and its file on this machine."""

    image: np.ndarray
    path: str


def photograph(label: str, **options: Any) -> Any:
    """The component of a photograph from a file or the webcam: an Upload, or None.

    Gradio's own reading opens whatever Pillow opens, without a limit on pixels. It is replaced in
    the instance: for a derived class Gradio would write a file next to this one.
    """
    import gradio as gr

    options = {"sources": ["upload", "webcam", "clipboard"], "height": 220, **options}
    image = gr.Image(label=label, type="filepath", **options)

    def read(payload: Any) -> Upload | None:
        if payload is None:
            return None
        if not payload.path:
            raise sentence(ValueError(f"{label}: upload it as a file"))
        try:
            return Upload(read_photograph(payload.path, label), payload.path)
        except ImageError as error:
            Path(payload.path).unlink(missing_ok=True)  # no form gets it, so nobody would delete it
            raise sentence(error) from error

    image.preprocess = read
    return image


def folder_choice(site: Site, label: str, mark: str) -> Any:
    """The component that chooses a folder below the roots which holds the file ``mark``."""
    import gradio as gr

    names = folders.found(site.roots, mark)
    return gr.Dropdown(
        names,
        value=None,
        label=label,
        allow_custom_value=True,
        elem_id=label.lower(),
        info="" if names else "none found below --root",
    )


def escaped(text: str) -> str:
    """For Markdown: what people typed is shown and not interpreted."""
    marks = {ord(c): f"&#{ord(c)};" for c in "\\`*_{}[]()<>#+-.!|~&$\"'"}
    return text.translate(marks)
