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

from data_pipeline.pose.movenet import MoveNet
from data_pipeline.pose.tfjs import GraphModel
from persongen_jax.face_detectors import KeypointsDetector


class PoseNet(NamedTuple):
    """A pose network.

    Attributes:
        find: maps n images, uint8 RGB [h, w, 3] of any sizes, to joints [n, 12, 2], COCO's 5 to 16,
            (x, y) in pixels of each image, origin "corner"; and whether each is found, [n, 12]
            bool.
        networks: its weights, a pytree of arrays each.
        licence: of the weights, in one line; "" if nothing says.
    """

    find: Callable[[Sequence[np.ndarray]], tuple[np.ndarray, np.ndarray]]
    networks: tuple[Any, ...]
    licence: str = ""

    def __call__(self, images: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        return self.find(images)


def open_pose_net(name: str) -> PoseNet:
    """The pose network called ``name``; see the module's docstring.

    Raises:
        ValueError: no such network.
        MissingFile, FileNotFoundError, ModelError: its files.
    """
    kind, _, place = str(name).partition(":")
    if kind == "keypoints" and place:
        detector = KeypointsDetector(place)
        return PoseNet(detector.bodies, detector.networks)
    if kind == "movenet" and place:
        movenet = open_movenet(place)

        def find(images):
            bodies = [pose.body() for pose in movenet(images)]
            joints, seen = zip(*bodies, strict=True) if bodies else ((), ())
            return np.reshape(joints, (-1, 12, 2)), np.reshape(seen, (-1, 12)).astype(bool)

        return PoseNet(find, movenet.networks, movenet.licence)
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
