"""The one strict loader: a file's tensors into a Flax module, one tensor at a time.

Module paths mirror the keys of diffusers and transformers, so one rule names every tensor; where
formats differ, ``keys.py`` and its neighbours rename the tensors first.
"""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from persongen_jax.parallel.sharding import Shardings, put_array
from persongen_jax.weights.errors import KeyMismatch, WeightsError
from persongen_jax.weights.files.source import TensorSource

M = TypeVar("M", bound=nnx.Module)

WEIGHT_NAMES = ("kernel", "scale", "embedding")

# The contents of weight files: parameters, and the running statistics of batch normalisation.
STORED = (nnx.Param, nnx.BatchStat)


def torch_key(path: tuple) -> str:
    """('conv_in', 'kernel') to 'conv_in.weight': PyTorch's key for a leaf."""
    *parents, leaf = (str(part) for part in path)
    return ".".join([*parents, "weight" if leaf in WEIGHT_NAMES else leaf])


def to_torch_shape(path: tuple, shape: tuple) -> tuple:
    """The shape in which PyTorch stores a leaf: kernels OIHW or (out, in), others as here."""
    if path[-1] != "kernel":
        return tuple(shape)
    return (shape[3], shape[2], *shape[:2]) if len(shape) == 4 else tuple(shape[::-1])


def from_torch_layout(path: tuple, array: np.ndarray) -> np.ndarray:
    """OIHW to HWIO, (out, in) to (in, out), everything else unchanged."""
    if path[-1] != "kernel":
        return array
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T


def to_torch_layout(path: tuple, array: np.ndarray) -> np.ndarray:
    """The inverse of :func:`from_torch_layout`."""
    if path[-1] != "kernel":
        return array
    return array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T


def parameter_leaves(module: nnx.Module) -> dict[tuple, jax.Array]:
    """Every array of a ``STORED`` kind by path, in a fixed order; excludes adapters."""
    flat = nnx.to_flat_state(nnx.state(module, STORED))
    leaves = {tuple(path): leaf.get_value() for path, leaf in flat}
    return {path: leaf for path, leaf in leaves.items() if "lora" not in path}


def load_module(
    build: Callable[[], M], source: TensorSource, *, shardings: Shardings | None = None
) -> M:
    """Build a module and fill every parameter and running statistic from ``source``.

    Args:
        build: function without arguments that builds the module; it is only traced, so the random
            initial weights never exist.
        source: a TensorSource (directory.py, keys.py): ``keys``, ``info``, ``read``, ``describe``.
        shardings: None for the default device; a sharding for all; or a function from
            (path, shape) to a sharding. Each tensor goes straight to its devices.

    Returns:
        The module. Peak host memory is the weights plus one tensor.

    Raises:
        KeyMismatch: a key missing, unexpected or misshapen; all of them are listed.
    """
    return fill_module(prepare_module(build, source), source, shardings=shardings)


def prepare_module(build: Callable[[], M], source: TensorSource) -> M:
    """The module as shapes; KeyMismatch unless ``source`` fits it; reads no tensor."""
    module = nnx.eval_shape(build)
    check_keys(parameter_leaves(module), source)
    return module


def fill_module(module: M, source: TensorSource, *, shardings: Shardings | None = None) -> M:
    """The result of :func:`prepare_module` with every parameter read from ``source``."""
    graphdef, params, *rest = nnx.split(module, STORED, ...)
    flat = []
    for path, variable in nnx.to_flat_state(params):
        array = from_torch_layout(path, source.read(torch_key(path)))
        array = np.ascontiguousarray(array.astype(variable.get_value().dtype))
        sharding = shardings(path, array.shape) if callable(shardings) else shardings
        flat.append((path, variable.replace(put_array(array, sharding))))
    return nnx.merge(graphdef, nnx.from_flat_state(flat), *rest)


def check_keys(leaves: dict[tuple, jax.Array], source: TensorSource) -> None:
    """KeyMismatch unless ``source`` has exactly the tensors that ``leaves`` need."""
    wanted = {torch_key(path): to_torch_shape(path, leaf.shape) for path, leaf in leaves.items()}
    found = set(source.keys())
    missing = sorted(set(wanted) - found)
    unexpected = sorted(found - set(wanted))
    misshapen = {}
    for key in sorted(found & set(wanted)):
        shape = tuple(source.info(key)[1])
        if shape != wanted[key]:
            misshapen[key] = (shape, wanted[key])
    if missing or unexpected or misshapen:
        raise KeyMismatch(source.describe(), missing, unexpected, misshapen)
    for key in sorted(found):
        dtype = source.info(key)[0]
        if "float" not in dtype.name:
            raise WeightsError(
                f"{source.describe()}: {key!r} is stored as {dtype.name}, not a weight: it is "
                "quantised in a way that is not read here. Get the file in fp16 or bf16."
            )


def cast_module(module: M, dtype: DTypeLike) -> M:
    """Store every floating-point parameter of the module in ``dtype``, in place."""
    for _, variable in nnx.to_flat_state(nnx.state(module, nnx.Param)):
        if jnp.issubdtype(variable.get_value().dtype, jnp.floating):
            variable.set_value(variable.get_value().astype(dtype))
    return module
