"""What is trained: a table of (path pattern, group), the split of the model, the optimizer.

Paths are written "unet/down_blocks/1/.../to_q/lora/down". A pattern has to match the whole path.
"""

import re

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from persongen_jax.weights.errors import KeyMismatch


def leaf_paths(model) -> dict[str, nnx.Variable]:
    """Every parameter of the model by its path."""
    flat = nnx.to_flat_state(nnx.state(model, nnx.Param))
    return {"/".join(map(str, path)): leaf for path, leaf in flat}


def assign_groups(paths, table) -> dict[str, str]:
    """Path to group for every path that a row of ``table`` matches.

    Raises:
        ValueError: a row that matches nothing, or a path that two rows match.
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


def split_model(model, table):
    """Divide a model into what is trained and what is not.

    Returns:
        (graphdef, trainable, frozen, groups): ``trainable`` maps path to float32 array; ``frozen``
        is the NNX state of all the rest; ``groups`` maps the trainable paths to their group.
        :func:`merge_model` puts them together again.
    """
    groups = assign_groups(leaf_paths(model), table)

    def is_trainable(path, _):
        return "/".join(map(str, path)) in groups

    graphdef, trainable, frozen = nnx.split(model, is_trainable, ...)
    flat = {"/".join(map(str, p)): v.get_value() for p, v in nnx.to_flat_state(trainable)}
    # Adam's small steps vanish in half precision.
    return graphdef, {p: v.astype(jnp.float32) for p, v in flat.items()}, frozen, groups


def split_shapes(model, table):
    """:func:`split_model` for a model of shapes."""
    whole, state = nnx.split(model)
    static = []

    def split(state):
        graphdef, trainable, frozen, groups = split_model(nnx.merge(whole, state), table)
        static.append((graphdef, groups))
        return trainable, frozen

    trainable, frozen = jax.eval_shape(split, state)
    graphdef, groups = static[0]
    return graphdef, trainable, frozen, groups


def merge_model(graphdef, trainable: dict, frozen):
    """The model with these trainable arrays; used inside the compiled step."""
    flat = [(_key(path), nnx.Param(value)) for path, value in trainable.items()]
    return nnx.merge(graphdef, nnx.from_flat_state(flat), frozen)


def _key(path: str) -> tuple:
    """ "unet/down_blocks/0" to ("unet", "down_blocks", 0), as NNX has it."""
    return tuple(int(part) if part.isdigit() else part for part in path.split("/"))


def fill_trained(model, trained: dict, table, where: str):
    """Set a model's trainable leaves to arrays by path, in place; strict both ways.

    Raises:
        KeyMismatch: paths or shapes that do not pair up; ``where`` names the file.
    """
    leaves = leaf_paths(model)
    wanted = {path: leaves[path] for path in assign_groups(leaves, table)}
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
    set_leaves(model, trained)


def set_leaves(model, arrays: dict):
    """Set parameters of the model to arrays of their shape, by path, in place."""
    leaves = leaf_paths(model)
    for path, array in arrays.items():
        leaves[path].set_value(jnp.asarray(array))
    nnx.update(model, nnx.from_flat_state([(_key(path), leaves[path]) for path in arrays]))


def make_optimizer(config, groups: dict[str, str]) -> optax.GradientTransformation:
    """Adam with one learning rate per group, ``config.lr_<group>``; see :func:`learning_rate`.

    ``config.clip_norm`` above 0 first shortens the gradient of all groups together to that norm.

    Raises:
        ValueError: a group without its rate, or an unknown ``config.lr_schedule``.
    """
    transforms = {}
    for group in sorted(set(groups.values())):
        name = f"lr_{group}"
        if name not in config:
            raise ValueError(f"the config has no {name!r}, the learning rate of group {group!r}")
        transforms[group] = optax.adam(
            learning_rate(config, config[name]), config.adam_b1, config.adam_b2
        )
    adam = optax.partition(transforms, groups)
    if config.clip_norm > 0:
        return optax.chain(optax.clip_by_global_norm(config.clip_norm), adam)
    return adam


# What is left of the rate after a fraction of the steps behind the warm-up.
DECAYS = {
    "constant": lambda progress: 1.0,
    "cosine": lambda progress: 0.5 * (1 + jnp.cos(jnp.pi * progress)),
    "linear": lambda progress: 1 - progress,
}


def learning_rate(config, rate: float):
    """step to learning rate: ``rate`` * min(1, (step + 1) / warmup_steps), then the decay.

    Step 0 already moves. Behind the warm-up ``config.lr_schedule`` keeps the rate ("constant") or
    lets it fall to 0 at ``config.steps`` ("cosine", "linear").
    """
    if config.lr_schedule not in DECAYS:
        raise ValueError(f"config.lr_schedule={config.lr_schedule!r}: use {', '.join(DECAYS)}")
    warmup, decay = config.warmup_steps, DECAYS[config.lr_schedule]
    decaying = max(1, config.steps - warmup)

    def schedule(step):
        warm = jnp.minimum(1.0, (step + 1) / max(1, warmup))
        return rate * warm * decay(jnp.clip((step - warmup) / decaying, 0.0, 1.0))

    return schedule


def summary(trainable: dict, frozen, groups: dict[str, str]) -> str:
    """A line per group with its number of parameters, for the log."""
    counts = {}
    for path, array in trainable.items():
        counts[groups[path]] = counts.get(groups[path], 0) + array.size
    frozen_count = sum(leaf.get_value().size for _, leaf in nnx.to_flat_state(frozen))
    lines = [f"  {group}: {count:,} trained" for group, count in sorted(counts.items())]
    return "\n".join([*lines, f"  frozen: {frozen_count:,}"])
