"""Pose networks as modules inside of a step: images to the body's twelve joints, differentiable."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from data_pipeline.pose.movenet import BODY, JOINTS, MoveNet
from data_pipeline.pose.tfjs import GraphModel
from persongen_jax.models.faces.keypoint_net import KeypointNet
from persongen_jax.models.layers import UnusedRngs
from persongen_jax.weights.formats.keypoint_net import load_keypoint_net


def open_pose_reader(name: str, *, abstract: bool = False) -> nnx.Module:
    """The network called ``name``, keypoints:DIR or movenet:FILE.json (see pose_nets.py).

    Args:
        abstract: where there is no such file, a KeypointNet of its usual sizes.

    Raises:
        ValueError: no such kind.
        MissingFile, FileNotFoundError, ModelError: its files.
    """
    kind, _, place = str(name).partition(":")
    if kind not in ("keypoints", "movenet") or not place:
        raise ValueError(
            f"config.loss_pose_net={name!r} is unknown: give keypoints:DIR or movenet:FILE.json"
        )
    if abstract and not Path(place).exists():
        return KeypointReader(KeypointNet({}, rngs=UnusedRngs()))
    if kind == "keypoints":
        return KeypointReader(load_keypoint_net(place))
    return MoveNetReader(place)


class KeypointReader(nnx.Module):
    """The miniature's KeypointNet on images [b, h, w, 3] in 0..1: joints [b, 12, 2] in sides."""

    def __init__(self, net: KeypointNet):
        self.net = net

    def __call__(self, images: jax.Array) -> jax.Array:
        size = self.net.config["image_size"]
        square, shift = make_square(images, "edge")
        found = self.net(2 * resized(square, (size, size)) - 1).keypoints
        return to_sides(found, images.shape, shift)


class MoveNetReader(nnx.Module):
    """MoveNet on images [b, h, w, 3] in 0..1: joints [b, 12, 2] in sides.

    The network picks a joint's cell by its heatmap and adds an offset to it: gradients flow through
    the offset alone.
    """

    def __init__(self, path: str):
        found: list[GraphModel] = []

        def keep(graph):
            found.append(graph)
            return graph

        self.size = MoveNet(path, run=keep).size
        self.graph = Graph(found[0])
        # Kernels are parameters, so that judges are recognised and nothing large is a constant of
        # the program; whatever else there is may have to be known when it is compiled.
        weights = found[0].weights
        self.names = tuple(n for n, a in weights.items() if a.ndim > 1 and a.dtype.kind == "f")
        self.layers = nnx.List([Layer(jnp.asarray(weights[name])) for name in self.names])

    def __call__(self, images: jax.Array) -> jax.Array:
        square, shift = make_square(images, "constant")
        small = 255 * resized(square, (self.size, self.size), "linear")
        kernels = (layer.kernel.get_value() for layer in self.layers)
        weights: dict[str, Any] = dict(zip(self.names, kernels, strict=True))
        whole = self.graph.model
        graph = dataclasses.replace(whole, weights={**whole.weights, **weights})
        found = jax.vmap(lambda image: graph(image[None], xp=jnp)[0].reshape(JOINTS, 3))(small)
        return to_sides(found[:, BODY, 1::-1], images.shape, shift)


class Layer(nnx.Module):
    """One of a graph's kernels."""

    def __init__(self, kernel: jax.Array):
        self.kernel = nnx.Param(kernel)


class Graph:
    """A graph that equals itself alone, because a module's static parts must be comparable."""

    def __init__(self, model: GraphModel):
        self.model = model


def make_square(images: jax.Array, mode: str) -> tuple[jax.Array, tuple[int, int]]:
    """Images centred in squares, padded as jnp.pad's ``mode`` says, and (left, top) in pixels."""
    _, height, width, _ = images.shape
    side = max(height, width)
    left, top = (side - width) // 2, (side - height) // 2
    rest = ((0, 0), (top, side - height - top), (left, side - width - left), (0, 0))
    return (jnp.pad(images, rest, mode=mode) if side > min(height, width) else images), (left, top)


def resized(images: jax.Array, size: tuple[int, int], method: str = "cubic") -> jax.Array:
    """Images [b, h, w, 3] in 0..1 at ``size`` (height, width), smoothed where that is smaller."""
    if images.shape[1:3] == size:
        return images
    shape = (len(images), *size, images.shape[-1])
    return jnp.clip(jax.image.resize(images, shape, method), 0, 1)


def to_sides(found: jax.Array, shape: tuple[int, ...], shift: tuple[int, int]) -> jax.Array:
    """Joints [b, 12, 2] in sides of the square to sides of the images [b, h, w, 3] within."""
    _, height, width, _ = shape
    pixels = found * max(height, width) - jnp.array(shift, jnp.float32)
    return pixels / jnp.array([width, height], jnp.float32)
