"""What is trained: a table of (path pattern, group), and the model split by it.

Paths look like "unet/down_blocks/1/.../to_q/lora/down". A pattern must match the whole path.
"""

import re
from collections.abc import Iterable, Mapping

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import ArrayLike

from persongen_jax.models.quantised import QuantisedArray
from persongen_jax.training.step import key_of
from persongen_jax.weights.errors import KeyMismatch
from persongen_jax.weights.quantising import quantise_kernels


def leaf_paths(model: nnx.Module) -> dict[str, nnx.Variable]:
    """Maps path to parameter, for every parameter of the model."""
    flat = nnx.to_flat_state(nnx.state(model, nnx.Param))
    return {"/".join(map(str, path)): leaf for path, leaf in flat}


def assign_groups(paths: Iterable[str], table: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Maps path to group for every path that a row of ``table`` matches.

    Raises:
        ValueError: a row matches nothing, or two rows match the same path.
    """
    rows = [(re.compile(pattern), group) for pattern, group in table]
    groups, unused = {}, {pattern.pattern for pattern, _ in rows}
    for path in paths:
        matches = [(pattern, group) for pattern, group in rows if pattern.fullmatch(path)]
        if len(matches) > 1:
            patterns = " and ".join(repr(pattern.pattern) for pattern, _ in matches)
            raise ValueError(f"{path} is matched by {patterns}: make the patterns disjoint")
        for pattern, group in matches:
            groups[path] = group
            unused.discard(pattern.pattern)
    if unused:
        examples = ", ".join(sorted(paths)[:5])
        raise ValueError(
            f"trainable patterns that match no parameter: {sorted(unused)}; paths look like "
            f"{examples}"
        )
    return groups


def split_model(
    model: nnx.Module, table: Iterable[tuple[str, str]]
) -> tuple[nnx.GraphDef, dict[str, jax.Array], nnx.State, dict[str, str]]:
    """Split a model into trained and frozen parts.

    Returns:
        (graphdef, trainable, frozen, groups): ``trainable`` maps path to float32 array; ``frozen``
        is the NNX state of everything else; ``groups`` maps each trainable path to its group.
        step.merge_model joins them again.

    Raises:
        ValueError: a table that does not fit, or that trains kernels held in 8 bits.
    """
    groups = assign_groups(leaf_paths(model), table)

    def is_trainable(path, _):
        return "/".join(map(str, path)) in groups

    check_full_precision(model, groups, "cannot be trained")
    graphdef, *states = nnx.split(model, is_trainable, ...)
    trainable, frozen = states
    flat = {"/".join(map(str, p)): v.get_value() for p, v in nnx.to_flat_state(trainable)}
    # Adam's small updates vanish in half precision.
    return graphdef, {p: v.astype(jnp.float32) for p, v in flat.items()}, frozen, groups


def check_full_precision(model: nnx.Module, paths: Iterable[str], verdict: str) -> None:
    """ValueError if one of these parameters is held in 8 bits."""
    leaves = leaf_paths(model)
    for path in paths:
        if isinstance(value := leaves[path].get_value(), QuantisedArray):
            raise ValueError(
                f"{path}: held in {value.kind}, it {verdict}; open the base without quantize, or "
                "take the path out of the trained weights"
            )


def quantise_frozen(
    model: nnx.Module, kind: str, layers: Iterable[str], table: Iterable[tuple[str, str]]
) -> None:
    """Hold those of ``layers`` in 8 bits, in place, of which ``table`` does not train the kernel.

    Args:
        kind: "int8" or "fp8". layers: weights.quantising.base_layers' of the same model.
    """
    trained = assign_groups(leaf_paths(model), table)
    quantise_kernels(model, kind, {path for path in layers if f"{path}/kernel" not in trained})


def split_shapes(
    model: nnx.Module, table: Iterable[tuple[str, str]]
) -> tuple[nnx.GraphDef, dict[str, jax.ShapeDtypeStruct], nnx.State, dict[str, str]]:
    """:func:`split_model` for a model of ShapeDtypeStructs."""
    whole, state = nnx.split(model)
    static = []

    def split(state):
        graphdef, trainable, frozen, groups = split_model(nnx.merge(whole, state), table)
        static.append((graphdef, groups))
        return trainable, frozen

    trainable, frozen = jax.eval_shape(split, state)
    graphdef, groups = static[0]
    return graphdef, trainable, frozen, groups


def statistics(frozen: nnx.State) -> dict:
    """Statistics that layers gather (running means and variances) in frozen weights, by path."""
    flat = nnx.to_flat_state(frozen)
    stats = {p: v for p, v in flat if isinstance(v, nnx.BatchStat)}
    return {"/".join(map(str, path)): leaf.get_value() for path, leaf in stats.items()}


def fill_trained(
    model: nnx.Module, trained: dict, table: Iterable[tuple[str, str]], where: str
) -> None:
    """Set a model's trainable leaves from arrays by path, in place; strict both ways.

    Layer statistics (:func:`statistics`) may be included.

    Raises:
        KeyMismatch: paths or shapes do not match; ``where`` names the file.
    """
    leaves = leaf_paths(model)
    wanted = {path: leaves[path] for path in assign_groups(leaves, table)}
    flat = nnx.to_flat_state(nnx.state(model, nnx.BatchStat))
    gathered = {"/".join(map(str, path)): leaf for path, leaf in flat}
    wanted |= {path: leaf for path, leaf in gathered.items() if path in trained}
    missing = set(wanted) - set(trained)
    unexpected = set(trained) - set(wanted)
    misshapen = {
        path: (tuple(trained[path].shape), tuple(wanted[path].shape))
        for path in set(wanted) & set(trained)
        if trained[path].shape != wanted[path].shape
    }
    if missing or unexpected or misshapen:
        remedy = "These weights were trained on another base, or with another config."
        raise KeyMismatch(where, sorted(missing), sorted(unexpected), misshapen, remedy)
    check_full_precision(model, wanted.keys() - gathered.keys(), f"cannot take {where}'s weights")
    set_leaves(model, trained)


def set_leaves(model: nnx.Module, arrays: Mapping[str, ArrayLike]) -> None:
    """Replace arrays of the model by others of the same shape, by path, in place."""
    flat = nnx.to_flat_state(nnx.state(model, (nnx.Param, nnx.BatchStat)))
    leaves = {"/".join(map(str, path)): leaf for path, leaf in flat}
    for path, array in arrays.items():
        leaves[path].set_value(jnp.asarray(array))
    nnx.update(model, nnx.from_flat_state([(key_of(path), leaves[path]) for path in arrays]))
