"""Random weights made on the device, for measurements that do not depend on their values.

The cost of a step or an image does not depend on the values as long as they stay finite: kernels
are drawn with a variance of 1 / fan-in, norms start as identity. No file is opened or downloaded.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from persongen_jax.models.quantised import QuantisedArray, quantise


def with_random_weights(model: Any) -> Any:
    """A model of ShapeDtypeStructs with arrays in their place, on the first device."""
    graphdef, state = nnx.split(model)
    filled = [
        (path, leaf.replace(random_weight(i, path, leaf.get_value())))
        for i, (path, leaf) in enumerate(nnx.to_flat_state(state))
    ]
    return nnx.merge(graphdef, nnx.from_flat_state(filled))


def random_weight(
    number: int, path: tuple, shape: jax.ShapeDtypeStruct | QuantisedArray
) -> jax.Array | QuantisedArray:
    """An array like ``shape``, of shapes only; ``number`` makes it differ from the others."""
    if isinstance(shape, QuantisedArray):
        whole = jax.ShapeDtypeStruct(shape.shape, jnp.dtype(shape.dtype))
        return quantise(random_weight(number, path, whole), shape.kind)
    name, dims = path[-1], shape.shape
    if name == "bias":
        return fill(shape.dtype, dims, number, 0.0, 0.0)
    if name == "scale":  # of a norm, or of a LoRA's columns
        return fill(shape.dtype, dims, number, 1.0, 0.0)
    if name == "kernel" or "lora" in path:
        return fill(shape.dtype, dims, number, 0.0, math.prod(dims[:-1]) ** -0.5)
    return fill(shape.dtype, dims, number, 0.0, 0.02)  # embeddings


@functools.partial(jax.jit, static_argnums=(0, 1))
def fill(
    dtype: DTypeLike, shape: tuple[int, ...], number: int, mean: float, std: float
) -> jax.Array:
    """[*shape] uniform around ``mean`` with this standard deviation.

    Hashes the position: SDXL has thousands of arrays of about a hundred shapes, and this compiles
    in no time for each.
    """
    bits = jax.lax.iota(jnp.uint32, math.prod(shape)) + jnp.uint32(number) * jnp.uint32(0x9E3779B9)
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        bits = (bits ^ (bits >> shift)) * jnp.uint32(factor)
    unit = (bits ^ (bits >> 16)).astype(jnp.float32) / 2.0**32 - 0.5
    return (mean + std * 12**0.5 * unit).reshape(shape).astype(dtype)
