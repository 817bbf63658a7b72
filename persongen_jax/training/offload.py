"""Keeps frozen weights that a training step does not read in host memory.

No step reads the VAE's decoder, and one on cached features (features/) reads no encoder either: at
SDXL's size more than 2 GiB of device memory. ``System.unread`` lists them. With
``config.offload_encoders`` they are NumPy arrays. Validation moves them back to the devices while
it runs, and so does the cache for each row that it lacks.
"""

from typing import Any

import jax
import numpy as np
from flax import nnx

from persongen_jax.parallel.sharding import path_of, put
from persongen_jax.training.partition import leaf_paths


def offloaded(model: nnx.Module, roots: tuple[str, ...]) -> None:
    """Move the weights under ``roots`` (path prefixes) off the devices, in place.

    Raises:
        ValueError: no process holds the whole weights.
    """
    for path, leaf in leaf_paths(model).items():
        if path.startswith(roots):
            leaf.set_value(jax.tree.map(_on_host, leaf.get_value()))


def _on_host(array):
    if not (array.is_fully_addressable or array.is_fully_replicated):
        raise ValueError(
            "config.offload_encoders: the frozen weights are divided among processes "
            "(config.shard_frozen); give one of the two as False"
        )
    return np.asarray(array)


def put_not_offloaded(tree: Any, shardings: Any) -> Any:
    """sharding.put for what is not offloaded; NumPy arrays stay where they are."""
    return jax.tree.map(
        lambda array, place: array if isinstance(array, np.ndarray) else put(array, place),
        tree,
        shardings,
    )


def without_shardings(tree: Any, roots: tuple[str, ...]) -> Any:
    """ShapeDtypeStructs, without a sharding for what lies under ``roots``."""

    def offload(keys, leaf):
        if not path_of(keys).startswith(roots):
            return leaf
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)

    return jax.tree_util.tree_map_with_path(offload, tree)
