"""What an encoder's output depends on in addition to its input, as one digest."""

import json

import jax
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from data_pipeline.examples.fields import Encoding
from persongen_jax.features.store import digest_of
from persongen_jax.training.partition import leaf_paths

VERSION = 1  # how images and prompts are prepared and rows laid out; part of every key


def local_array(array: np.ndarray | jax.Array) -> np.ndarray | jax.Array:
    """The array on this process' first device, whatever devices it is on.

    An offloaded array (training/offload.py) stays on the host, so that it occupies the device
    only during a call.
    """
    if isinstance(array, np.ndarray):
        return array
    if len(array.sharding.device_set) == 1:
        return array
    if array.is_fully_replicated:
        return array.addressable_data(0)
    if not array.is_fully_addressable:
        raise ValueError(
            "config.cache: the frozen weights are split over processes (config.shard_frozen), "
            "so none of them can compute features; give --config.shard_frozen=False"
        )
    return jax.device_put(np.asarray(array), jax.local_devices()[0])


def model_digest(config: ConfigDict, model: nnx.Module, encoding: Encoding) -> bytes:
    """A digest of everything but its input that an encoder's output depends on."""
    parts = [VERSION, encoding.kind, str(config[encoding.precision])]
    for owner in sorted({root.split("/")[0] for root in encoding.weights}):
        parts += _configs(getattr(model, owner))
    parts += encoding.signature
    for path, leaf in sorted(leaf_paths(model).items()):
        if path.startswith(encoding.weights):
            arrays = jax.tree.leaves(leaf.get_value())  # several of a kernel in 8 bits
            parts += [path, *(np.asarray(local_array(array)) for array in arrays)]
    return digest_of(*parts)


def _configs(module) -> list[str]:
    """The configs of the module and its direct children, if they have one."""
    parts = [module, *(part for part in vars(module).values() if isinstance(part, nnx.Module))]
    return [json.dumps(p.config.to_dict(), sort_keys=True) for p in parts if hasattr(p, "config")]
