"""The real step and sampler at full size, as shapes only, for devices that are not present.

Nothing is allocated: weights, optimizer and batch are ShapeDtypeStructs with the shardings that
training and the pipeline would give them on the topology's mesh.
"""

import dataclasses
import math
from typing import Any

import jax
from jax.interpreters import partial_eval
from jax.sharding import Mesh
from ml_collections import ConfigDict

from data_pipeline.examples.fields import flatten
from persongen_jax.features.cache import open_encoder
from persongen_jax.models.platform import compile_for
from persongen_jax.parallel.sharding import batch_sharding, frozen_shardings
from persongen_jax.systems.assembly import assemble, step_spec, with_shardings
from persongen_jax.systems.open import abstract_system
from persongen_jax.training import flop_count


@dataclasses.dataclass
class Program:
    """A program to compile.

    Attributes:
        arguments: of ``function``, ShapeDtypeStructs with shardings; static ones as they are.
        parts: the components of the arguments: name -> tree.
        images: images over all chips that one run generates, or trains on.
        steps: the iterations of a loop if the compiler cannot know them; 1 for a step.
        holds_all: whether arguments that it does not read are on the chips all the same.
        label: the system's name in tables.
    """

    function: jax.stages.Wrapped
    arguments: tuple
    parts: dict
    images: int
    mesh: Mesh
    steps: int = 1
    holds_all: bool = False
    label: str = ""

    def trace(self) -> jax.stages.Traced:
        with jax.set_mesh(self.mesh), compile_for("tpu"):
            return self.function.trace(*self.arguments)

    def lower(self, traced: jax.stages.Traced) -> jax.stages.Lowered:
        with jax.set_mesh(self.mesh), compile_for("tpu"):
            return traced.lower()

    def flops(self) -> int:
        """Of all chips together; a loop with ``steps`` iterations counts once."""
        with jax.set_mesh(self.mesh), compile_for("tpu"):
            return flop_count.of_function(self.function, *self.arguments)

    def bytes_per_chip(self) -> dict[str, int]:
        return {name: tree_bytes(tree) for name, tree in self.parts.items()}

    def unread_bytes(self, traced: jax.stages.Traced) -> int:
        """Per chip, of weights that are there although the program does not read them."""
        if not self.holds_all:
            return 0
        jaxpr, leaves = traced.jaxpr.jaxpr, jax.tree.leaves(self.arguments)
        _, read = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
        unread = [leaf for leaf, used in zip(leaves, read, strict=True) if not used]
        return tree_bytes(unread)


def training(config: ConfigDict, mesh: Mesh, *, cached: bool) -> Program:
    """The training step of a config; ``config.batch_size`` is over all chips.

    Args:
        cached: the batch holds what frozen encoders made, as with a feature cache.
    """
    system = abstract_system(config)
    parts = assemble(system, mesh, cached=cached)
    batch = _shard_batch(system.abstract_batch(cached), batch_sharding(mesh))
    pieces = {
        "frozen weights": parts.frozen,
        "trained weights": (parts.state.trainable, parts.state.ema, parts.state.stats),
        "optimizer": parts.state.opt_state,
        "batch": batch,
    }
    arguments = (parts.state, parts.frozen, batch, step_spec(mesh))
    of = (arguments, pieces, config.batch_size, mesh)
    return Program(parts.step, *of, holds_all=True, label=system.label)


def sampler(config: ConfigDict, mesh: Mesh, *, steps: int) -> Program:
    """The sampler's loop as in validation, including guidance, without the codec."""
    system = abstract_system(config)
    program = system.sampling_program(steps)
    weights = with_shardings(program.weights, frozen_shardings(mesh, config, program.weights))
    inputs = _shard_batch(program.inputs, batch_sharding(mesh))
    arguments = (*program.static, weights, *inputs)
    parts = {"weights": weights, "batch": inputs}
    of = (arguments, parts, config.batch_size, mesh)
    return Program(program.function, *of, steps=program.unknown_steps, label=system.label)


def encoders(config: ConfigDict, mesh: Mesh) -> Program:
    """What the frozen encoders compute in a training step without cached features, alone."""
    system = abstract_system(config)
    whole = flatten(system.abstract_batch())
    kinds = system.cached_kinds()
    fields: list[Any] = [
        f for f in system.fields if f.encoding is not None and f.encoding.kind in kinds
    ]
    if not fields:
        raise ValueError(f"no encoder of {system.label} is frozen, so there is nothing to compile")
    inputs, opened = {}, {}
    for field in fields:
        shape = field.input_shape((config.size, config.size))
        own = {n: whole[n] for n in field.spec((config.size, config.size)) if n in whole}
        own = {n: a for n, a in own.items() if a.shape[1:][-len(shape) :] == shape}
        inputs[field.name] = _shard_batch(own, batch_sharding(mesh))
        opened[field.name] = open_encoder(system.model, field.encoding), shape
    states = {name: state for name, ((_, state), _) in opened.items()}
    states = with_shardings(states, frozen_shardings(mesh, config, states))

    def encode(states, inputs):
        def one(name, array):
            (function, _), shape = opened[name]
            return function(states[name], array.reshape(-1, *shape))

        return {k: {n: one(k, a) for n, a in arrays.items()} for k, arrays in inputs.items()}

    parts = {"weights": states, "batch": inputs}
    of = ((states, inputs), parts, config.batch_size, mesh)
    return Program(jax.jit(encode), *of, label=system.label)


def _shard_batch(tree, sharding):
    """``tree``'s shapes sharded over the chips; numbers stay as they are."""

    def spread(leaf):
        if not isinstance(leaf, jax.ShapeDtypeStruct):
            return leaf
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree.map(spread, tree)


def tree_bytes(tree: Any) -> int:
    """Bytes of a tree of ShapeDtypeStructs on one of its chips; 0 for those without a sharding."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
        if isinstance(leaf, jax.ShapeDtypeStruct) and leaf.sharding is not None
    )


def with_batch(config: ConfigDict, per_chip: int, chips: int) -> ConfigDict:
    """The config with ``per_chip`` images on each chip, in as many parts as it says."""
    return ConfigDict({**config, "batch_size": per_chip * chips})
