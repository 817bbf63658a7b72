"""Pose networks for real photographs, in JAX."""

import os
from collections.abc import Callable

import jax
import jax.numpy as jnp

from data_pipeline.pose.movenet import MoveNet
from data_pipeline.pose.tfjs import GraphModel


def open_movenet(path: str | os.PathLike) -> MoveNet:
    """MoveNet from its TensorFlow.js graph (data_pipeline/pose/movenet.py), run by JAX.

    Raises:
        FileNotFoundError, ModelError: see data_pipeline.pose.tfjs.read_graph_model.
    """
    return MoveNet(path, run=compiled)


def compiled(model: GraphModel) -> Callable[[jax.typing.ArrayLike], jax.Array]:
    """A graph of one input and one output under jit; differentiable in a floating input."""
    return jax.jit(lambda image: model(image, xp=jnp)[0])
