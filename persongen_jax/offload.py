"""Frozen weights that a training step does not read, kept in the host's memory.

No step reads the VAE's decoder, and one on cached features (features.py) no encoder either: at
SDXL's size more than 2 GiB of a chip. With ``config.offload_encoders`` they are NumPy arrays.
Validation brings them back to the devices for as long as it lasts, and the cache for each row that
it lacks.
"""

import jax
import numpy as np

from persongen_jax.features import cached_kinds, depends_on
from persongen_jax.partition import leaf_paths
from persongen_jax.sharding import put

DECODER = ("vae/decoder/", "vae/post_quant_conv/")


def unread_roots(config, model, method, *, cached: bool) -> tuple[str, ...]:
    """Beginnings of the paths of what a training step of ``config`` does not read.

    Args:
        cached: the step reads cached features of every kind that can be cached.
    """
    roots = DECODER
    if cached:
        reasons = cached_kinds(config, model, method)
        roots += tuple(r for kind in reasons if not reasons[kind] for r in depends_on(kind, method))
    return roots


def offload(config, model, method):
    """Take what no step reads off the devices, in place, if ``config.offload_encoders`` says so.

    Raises:
        ValueError: no process has the weights whole.
    """
    if not config.offload_encoders:
        return
    roots = unread_roots(config, model, method, cached=bool(config.cache))
    for path, leaf in leaf_paths(model).items():
        if path.startswith(roots):
            array = leaf.get_value()
            if not (array.is_fully_addressable or array.is_fully_replicated):
                raise ValueError(
                    "config.offload_encoders: the frozen weights are divided among processes "
                    "(config.shard_frozen); give one of the two as False"
                )
            leaf.set_value(np.asarray(array))


def put_read(tree, shardings):
    """sharding.put of what is not offloaded; NumPy's arrays stay where they are."""
    return jax.tree.map(
        lambda array, place: array if isinstance(array, np.ndarray) else put(array, place),
        tree,
        shardings,
    )
