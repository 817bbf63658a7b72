"""Refuses a judge that the method itself reads, or is trained with.

Such a judge measures how well the method serves its own encoder, which flatters the figure. Weights
are compared, not paths: a copy under another name is the same judge, and so is one inside a
PhotoMaker file.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from persongen_jax.metrics.base import Metric
from persongen_jax.training.partition import leaf_paths

COMPARED_ARRAYS = 2  # arrays per network: the largest ones of different shapes
# Relative distance that rounding an array to 16 bits and back can cause.
ROUNDING = 2.0**-8


def check_judges(
    metrics: list[Metric], model: nnx.Module, roots: Iterable[str], admitted: Sequence[str]
) -> None:
    """ValueError for a metric whose judge is a network that the method reads.

    Args:
        metrics: opened; those that judge outside JAX (``networks()`` is empty) are not checked.
        model: the method's, an nnx.Module with all its weights.
        roots: path prefixes of what the method reads as input or is trained with as a loss, whole
            parts of a path such as "id_encoder/vision_model" (partition.leaf_paths).
        admitted: names of metrics that may have such a judge, config.judges_are_inputs. They print
            a line instead.

    Raises:
        ValueError: a judge that is an input, or a root that matches nothing in the model.
    """
    by_shape = _by_shape(leaf_paths(model), roots)
    for metric in metrics:
        paths = [find_shared(network, by_shape) for network in metric.networks()]
        paths = [path for path in paths if path]
        if not paths:
            continue
        fact = f"{metric.title} is judged by {metric.judge}, whose weights are those of {paths[0]}"
        if metric.name in admitted:
            print(f"{fact}, which the method reads: admitted by config.judges_are_inputs")
            continue
        key = f"config.{metric.judge_key}" if metric.judge_key else "config.metrics"
        names = (*admitted, metric.name)
        raise ValueError(
            f"{fact}: the method reads its own judge, or is trained by it, and such a figure "
            f"flatters it. Give another judge ({key}), or admit it explicitly: "
            f'--config.judges_are_inputs="{names}" in training, --judges-are-inputs '
            f"{' '.join(names)} in evaluation"
        )


def find_shared(network: Any, by_shape: dict) -> str:
    """The path of an array of the model that equals one of the network's largest, else "".

    Args:
        network: a pytree of arrays.
        by_shape: (path, array) pairs of the model by shape.
    """
    arrays = [array for array in jax.tree.leaves(network) if array.ndim > 1]
    largest = {}
    for array in sorted(arrays, key=lambda array: -array.size):
        largest.setdefault(array.shape, array)
    for shape, array in list(largest.items())[:COMPARED_ARRAYS]:
        candidates = by_shape.get(tuple(shape), ())
        theirs = np.asarray(array) if candidates else None
        for path, leaf in candidates:
            if float(_distance(leaf.get_value(), theirs)) < ROUNDING:
                return path
    return ""


@jax.jit
def _distance(ours, theirs):
    """Relative distance of two arrays of one shape; compiled, so that sharded ones stay sharded."""
    theirs = theirs.astype(jnp.float32)
    return jnp.linalg.norm(ours.astype(jnp.float32) - theirs) / jnp.linalg.norm(theirs)


def _by_shape(leaves: dict, roots) -> dict:
    by_shape = {}
    for root in roots:
        beginning = root.rstrip("/")
        found = [p for p in leaves if p == beginning or p.startswith(f"{beginning}/")]
        if not found:
            raise ValueError(f"judges: no parameter of the model is under {root!r}")
        for path in found:
            by_shape.setdefault(leaves[path].shape, []).append((path, leaves[path]))
    return by_shape
