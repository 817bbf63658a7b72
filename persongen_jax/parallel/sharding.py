"""One mesh of devices, and how arrays are sharded over it.

    mesh = make_mesh(fsdp=config.fsdp)
    frozen = put(frozen, frozen_shardings(mesh, config, frozen))

The mesh has the axes ("data", "fsdp"). A batch is split over both. Sharded weights are split over
the devices of an "fsdp" group and are gathered only while a layer computes with them (ZeRO stage 3,
Rajbhandari et al., arXiv 1910.02054, section 5); along "data" they are replicated. With ``fsdp=1``
every device has all weights whole.

A table of (path pattern, which), ``RULES``, says which weights may be split. Trained weights are
always sharded, with the optimizer's state and the running average; frozen weights are if
``config.shard_frozen``.
"""

import functools
import math
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, Sharding
from jax.typing import ArrayLike
from ml_collections import ConfigDict

Tree = Any  # arrays, or what belongs to each, in containers that JAX knows
Shardings = Sharding | Callable[[tuple, tuple[int, ...]], Sharding]  # for all, or by path and shape
Rules = Sequence[tuple[str, str]]  # (path pattern, which)

AXES = ("data", "fsdp")
BATCH = PartitionSpec(AXES)  # the first axis over all devices

WHOLE, DIVIDED = "whole", "divided"
# The first row that matches the whole path of an array says whether it may be split: along the
# largest axis that fsdp divides, the last of equals. An array that no row matches is an error.
# LoRA's factors are thousands of small arrays: gathering them would be most of a step's messages.
RULES = (
    (
        r"(.*/)?(bias|scale|running_mean|running_var|class_embedding|down|up|magnitude|added"
        r"|ns_coeffs)",
        WHOLE,
    ),
    (r"(.*/)?(kernel|embedding|latents|proj_out|pos_embed|kernel/value/codes)", DIVIDED),
)
# Arrays with fewer numbers stay whole: gathering them costs a message and saves nothing.
MIN_DIVIDED = 4096


# ---- The mesh ----------------------------------------------------------------------------------


def make_mesh(devices: Iterable[jax.Device] | None = None, *, fsdp: int = 1) -> Mesh:
    """The mesh ("data", "fsdp") over ``devices``, by default all devices of all processes.

    Args:
        fsdp: the number of devices that weights are split over; the rest form "data".

    Raises:
        ValueError: ``fsdp`` does not divide the number of devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    check_fsdp(fsdp, len(devices))
    shape = (len(devices) // fsdp, fsdp)
    if fsdp > 1 and devices[0].platform == "tpu":
        # Groups are neighbours on the chips' network, whatever the order of their numbers.
        array = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    else:
        array = np.array(devices).reshape(shape)
    return Mesh(array, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def mesh_for(config: ConfigDict) -> Mesh:
    """The mesh for inspecting a run, possibly on other devices than it was trained on.

    If their number is not a multiple of the config's group size, groups are as large as possible.
    """
    devices = jax.devices()
    return make_mesh(devices, fsdp=math.gcd(config.fsdp, len(devices)))


def check_fsdp(fsdp: int, devices: int) -> None:
    """ValueError unless ``devices`` is a multiple of ``fsdp``."""
    if fsdp < 1 or devices % fsdp:
        divisors = [n for n in range(1, devices + 1) if devices % n == 0]
        raise ValueError(
            f"config.fsdp={fsdp} does not divide the {devices} available devices; use one of "
            f"{', '.join(map(str, divisors))}"
        )


def replicated(mesh: Mesh) -> NamedSharding:
    """Whole on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The first axis is split over all devices."""
    return NamedSharding(mesh, BATCH)


# ---- How weights are sharded ---------------------------------------------------------------------


def spec_of(path: str, shape: tuple[int, ...], fsdp: int, rules: Rules = RULES) -> PartitionSpec:
    """The axis of an array that is split over ``fsdp`` devices, according to the table.

    Raises:
        ValueError: no row matches ``path``. Arrays that stay whole anyway need no row.
    """
    if not shape or fsdp == 1 or np.prod(shape) < MIN_DIVIDED:
        return PartitionSpec()
    which = next((which for pattern, which in rules if re.fullmatch(pattern, path)), None)
    if which is None:
        raise ValueError(
            f"no sharding rule matches {path} {tuple(shape)}: add a row to RULES in "
            "persongen_jax/parallel/sharding.py"
        )
    axes = [i for i, size in enumerate(shape) if size % fsdp == 0]
    if which == WHOLE or not axes:
        return PartitionSpec()
    axis = max(axes, key=lambda i: (shape[i], i))
    return PartitionSpec(*[None] * axis, "fsdp")


def shardings_by_path(mesh: Mesh, tree: Tree, rules: Rules = RULES) -> Tree:
    """A NamedSharding for every array of ``tree`` (arrays or ShapeDtypeStructs), same structure.

    Works on dictionaries by path, on NNX states, and on an optimizer's state, where the moments of
    a weight have its path as a suffix and are therefore sharded like it.
    """
    fsdp = mesh.shape["fsdp"]

    def sharding(keys, leaf):
        return NamedSharding(mesh, spec_of(path_of(keys), leaf.shape, fsdp, rules))

    return jax.tree_util.tree_map_with_path(sharding, tree)


def path_of(keys: tuple) -> str:
    """JAX's keys of a leaf as "unet/down_blocks/0/kernel"; NNX wraps each array in ".value"."""
    return jax.tree_util.keystr(keys, simple=True, separator="/").removesuffix("/value")


def state_shardings(mesh: Mesh, config: ConfigDict, state: Tree) -> Tree:
    """For a TrainState: all of it is sharded by the table, whatever ``config`` says."""
    del config
    return shardings_by_path(mesh, state)


def frozen_shardings(mesh: Mesh, config: ConfigDict, frozen: Tree) -> Tree:
    """For frozen weights: sharded with ``config.shard_frozen``, else whole on every device."""
    if config.get("shard_frozen", False):
        return shardings_by_path(mesh, frozen)
    return jax.tree.map(lambda _: replicated(mesh), frozen)


def load_shardings(mesh: Mesh, config: ConfigDict) -> Shardings:
    """Maps (path, shape) to sharding for weights/loader.py: each tensor goes to its final place."""
    if not config.get("shard_frozen", False):
        return replicated(mesh)
    fsdp = mesh.shape["fsdp"]

    def sharding(path, shape):
        return NamedSharding(mesh, spec_of("/".join(map(str, path)), shape, fsdp))

    return sharding


def gather_weights(tree: Tree) -> Tree:
    """Inside a jitted function: the arrays whole on every device of jax.set_mesh's mesh.

    Apply where weights are used; gradients are reduce-scattered back into the weights' shards.
    Without it XLA may partition a layer's work like its weights and send activations instead,
    layer by layer.
    """
    fsdp = jax.sharding.get_abstract_mesh().shape.get("fsdp", 1)
    if fsdp == 1:
        return tree

    def gather(keys, array):
        return _gathered(array, spec_of(path_of(keys), array.shape, fsdp))

    return jax.tree_util.tree_map_with_path(gather, tree)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _gathered(array, spec):
    return jax.lax.with_sharding_constraint(array, PartitionSpec())


_gathered.defvjp(
    lambda array, spec: (_gathered(array, spec), None),
    lambda spec, _, gradient: (jax.lax.with_sharding_constraint(gradient, spec),),
)


# ---- Placing arrays ----------------------------------------------------------------------


def put_array(array: jax.Array | np.ndarray, sharding: Sharding | None) -> jax.Array:
    """Place one array on its devices; every process passes the same whole array.

    Unlike jax.device_put this does not compare the values across processes, which would send every
    weight over the network.
    """
    if sharding is None or sharding.is_fully_addressable:
        return jax.device_put(array, sharding)
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
        if array.sharding.is_equivalent_to(sharding, array.ndim):
            return array
        return _relaid(array, sharding)
    if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        data = put_array(jax.random.key_data(array), sharding)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(array))
    array = np.asarray(array)
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def put(tree: Tree, shardings: Tree) -> Tree:
    """Place arrays on devices; ``shardings`` is one for all, or a tree of the same structure."""
    if isinstance(shardings, jax.sharding.Sharding):
        return jax.tree.map(lambda array: put_array(array, shardings), tree)
    return jax.tree.map(put_array, tree, shardings)


def put_batch(mesh: Mesh, batch: Tree) -> Tree:
    """Host arrays [b_local, ...] to device arrays [b, ...], where b is the sum over all processes.

    Raises:
        ValueError: b does not divide evenly among the devices.
    """
    sharding = batch_sharding(mesh)

    def put_rows(array):
        array = np.asarray(array)
        rows = array.shape[0] * jax.process_count()
        if rows % mesh.size:
            raise ValueError(
                f"a batch of {rows} does not divide evenly among {mesh.size} devices: "
                f"choose a batch size that is a multiple of {mesh.size}"
            )
        return jax.make_array_from_process_local_data(sharding, array)

    return jax.tree.map(put_rows, batch)


def _relaid(array: jax.Array, sharding: Sharding) -> jax.Array:
    """The array on all processes' devices, sharded otherwise."""
    return jax.jit(lambda x: x, out_shardings=sharding)(array)


def to_host(array: ArrayLike) -> np.ndarray:
    """The whole array, in every process; all of them must call it."""
    if not isinstance(array, jax.Array) or array.is_fully_addressable:
        return np.asarray(array)
    if not array.is_fully_replicated:
        mesh = cast(NamedSharding, array.sharding).mesh  # there is no other kind here
        array = _relaid(array, NamedSharding(mesh, PartitionSpec()))
    return np.asarray(array.addressable_data(0))
