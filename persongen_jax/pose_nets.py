"""Pose networks by name, in JAX: the joints of the most prominent person in an image.

movenet:FILE      MoveNet from its TensorFlow.js graph, for photographs
keypoints:DIR     the miniature's KeypointNet, for drawn people
"""

import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from data_pipeline.pose.movenet import BODY, JOINTS, VISIBLE, MoveNet
from data_pipeline.pose.tfjs import GraphModel
from persongen_jax.face_detectors import KeypointsDetector


class PoseNet(NamedTuple):
    """A pose network. Called on images it finds the body's joints.

    Attributes:
        points: maps n images, uint8 RGB [h, w, 3] of any sizes, to joints [n, 17, 2] in COCO's
            order, (x, y) in pixels of each image, origin "corner"; and to their scores [n, 17] in
            [0, 1], 0 for a joint that the network does not know.
        networks: its weights, a pytree of arrays each.
        licence: of the weights, in one line; "" if nothing says.
    """

    points: Callable[[Sequence[np.ndarray]], tuple[np.ndarray, np.ndarray]]
    networks: tuple[Any, ...]
    licence: str = ""

    def __call__(self, images: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """COCO's 5 to 16 of ``points``: joints [n, 12, 2], and whether each is found, [n, 12]."""
        joints, scores = self.points(images)
        return joints[:, BODY], scores[:, BODY] >= VISIBLE


def open_pose_net(name: str) -> PoseNet:
    """The pose network called ``name``; see the module's docstring.

    Raises:
        ValueError: no such network.
        MissingFile, FileNotFoundError, ModelError: its files.
    """
    kind, _, place = str(name).partition(":")
    if kind == "keypoints" and place:
        detector = KeypointsDetector(place)
        return PoseNet(detector.points, detector.networks)
    if kind == "movenet" and place:
        movenet = open_movenet(place)

        def points(images):
            poses = movenet(images)
            joints = np.reshape([pose.joints for pose in poses], (-1, JOINTS, 2))
            return joints, np.reshape([pose.scores for pose in poses], (-1, JOINTS))

        return PoseNet(points, movenet.networks, movenet.licence)
    raise ValueError(f"pose_net {name!r} is unknown: give movenet:FILE.json or keypoints:DIR")


def open_movenet(path: str | os.PathLike) -> MoveNet:
    """MoveNet from its TensorFlow.js graph (data_pipeline/pose/movenet.py), run by JAX.

    Raises:
        FileNotFoundError, ModelError: see data_pipeline.pose.tfjs.read_graph_model.
    """
    return MoveNet(path, run=compiled)


def compiled(model: GraphModel) -> Callable[[jax.typing.ArrayLike], jax.Array]:
    """A graph of one input and one output under jit; differentiable in a floating input."""
    return jax.jit(lambda image: model(image, xp=jnp)[0])
