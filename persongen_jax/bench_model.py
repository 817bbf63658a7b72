"""Models at their real sizes with weights drawn on the device, and batches to go with them.

Nothing is opened or downloaded. What a step or a picture costs does not depend on the values, as
long as they stay finite: kernels are drawn with a variance of 1 / fan-in, norms begin as identity.
"""

import functools
import math

import jax
import jax.numpy as jnp
from flax import nnx

from persongen_jax.features import abstract_batch
from persongen_jax.full_size import CONFIGS, IMAGE_TOWER, abstract_model
from persongen_jax.weights.random_base import SIZES, make_configs

VOCABULARY = 49408  # ids of CLIP's tokenizers


def component_configs(config) -> tuple[dict, dict]:
    """(config.json contents by component, the image tower's) of the base that is measured.

    ``config.base`` may be a size of weights/random_base.py ("tiny", "mid"); anything else is SDXL
    at full size.
    """
    if config.base not in SIZES:
        return CONFIGS, IMAGE_TOWER
    configs = make_configs(config.base, VOCABULARY)
    image_tower = configs.pop("image_encoder")
    return configs, image_tower


def shapes_only(config):
    """(model, method) with a ShapeDtypeStruct for every array."""
    model, method = abstract_model(config, *component_configs(config))
    model.unet.set_remat(config.remat)
    return model, method


def random_model(config):
    """(model, method) with drawn weights on the first device."""
    model, method = shapes_only(config)
    graphdef, state = nnx.split(model)
    filled = [
        (path, leaf.replace(draw_weight(i, path, leaf.get_value())))
        for i, (path, leaf) in enumerate(nnx.to_flat_state(state))
    ]
    return nnx.merge(graphdef, nnx.from_flat_state(filled)), method


def draw_weight(number: int, path: tuple, shape):
    """An array like ``shape``, a ShapeDtypeStruct; ``number`` tells it from the others."""
    name, dims = path[-1], shape.shape
    if name == "bias":
        return fill(shape.dtype, dims, number, 0.0, 0.0)
    if name == "scale":  # of a norm, or of a LoRA's columns
        return fill(shape.dtype, dims, number, 1.0, 0.0)
    if name == "kernel" or "lora" in path:
        return fill(shape.dtype, dims, number, 0.0, math.prod(dims[:-1]) ** -0.5)
    return fill(shape.dtype, dims, number, 0.0, 0.02)  # embeddings


@functools.partial(jax.jit, static_argnums=(0, 1))
def fill(dtype, shape, number, mean, std):
    """[*shape] uniform around ``mean`` with this standard deviation.

    A hash of the position: SDXL has thousands of arrays of about a hundred shapes, and this
    compiles in no time for each.
    """
    bits = jax.lax.iota(jnp.uint32, math.prod(shape)) + jnp.uint32(number) * jnp.uint32(0x9E3779B9)
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        bits = (bits ^ (bits >> shift)) * jnp.uint32(factor)
    unit = (bits ^ (bits >> 16)).astype(jnp.float32) / 2.0**32 - 0.5
    return (mean + std * 12**0.5 * unit).reshape(shape).astype(dtype)


def random_batch(config, model, method, cached: bool):
    """A batch (data_pipeline/schema.py) on the first device, of ``config.batch_size`` examples.

    With ``cached`` it holds what the feature cache stores, and no encoder has to run.
    """
    batch = abstract_batch(config, model, method, cached)
    leaves, structure = jax.tree_util.tree_flatten_with_path(batch)
    filled = [draw_input(i, path[-1].key, leaf, config) for i, (path, leaf) in enumerate(leaves)]
    return structure.unflatten(filled)


def draw_input(number: int, name: str, shape, config):
    """One entry of a batch by its name; what has none of its own is drawn around 0."""
    dims, size = shape.shape, float(config.size)
    if name == "class_tokens_mask":
        return jnp.zeros(dims, bool).at[:, 5:9].set(True)
    if name == "face_box":
        box = jnp.array([size / 4, size / 8, 3 * size / 4, 5 * size / 8])
        return jnp.broadcast_to(box, dims).astype(shape.dtype)
    if name == "time_ids":
        ids = jnp.array([size, size, 0, 0, size, size])
        return jnp.broadcast_to(ids, dims).astype(shape.dtype)
    if shape.dtype == bool:
        return jnp.ones(dims, bool)
    if jnp.issubdtype(shape.dtype, jnp.integer):
        ids = 1 + jnp.arange(math.prod(dims), dtype=shape.dtype).reshape(dims) % 400
        return ids.at[..., -1].set(VOCABULARY - 1)
    return fill(shape.dtype, dims, 10_000 + number, 0.0, 0.5)
