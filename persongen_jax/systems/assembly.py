"""Assembles a system for training: split and placed weights, the optimizer, the step.

``train``, ``aot``, ``bench``, ``study`` and the tests assemble a step only here.
"""

import dataclasses
import functools
from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from persongen_jax.parallel.sharding import frozen_shardings, put, replicated, state_shardings
from persongen_jax.systems.base import System
from persongen_jax.training.offload import offloaded, put_not_offloaded, without_shardings
from persongen_jax.training.optimizer import make_optimizer
from persongen_jax.training.partition import split_model, split_shapes, statistics
from persongen_jax.training.step import TrainState, make_train_step, merge_model


@dataclasses.dataclass
class Assembly:
    """The result of :func:`assemble`.

    Attributes:
        groups: maps the path of every trained array to its group.
        state: the initial TrainState; frozen: NNX state of all that is not trained.
            Arrays on the mesh; ShapeDtypeStructs if the system is abstract.
        places: the shardings of ``state``; homes: those of ``frozen``, including offloaded parts.
        step: jitted step(state, frozen, batch, step) to (state, metrics); see training/step.py.
    """

    system: System
    mesh: jax.sharding.Mesh
    groups: dict[str, str]
    graphdef: nnx.GraphDef
    state: TrainState
    frozen: nnx.State
    places: Any
    homes: Any
    step: jax.stages.Wrapped

    def eval_model(self, state: TrainState) -> nnx.Module:
        """The model that validation uses after this state, with offloaded weights put back."""
        return merge_model(self.graphdef, state.eval_params, put(self.frozen, self.homes))

    def counts(self) -> dict[str, int]:
        """Maps group to number of trained parameters, including "frozen"."""
        counts = Counter()
        for path, array in self.state.trainable.items():
            counts[self.groups[path]] += array.size
        return {**counts, "frozen": sum(x.size for x in jax.tree.leaves(self.frozen))}


def assemble(system: System, mesh: jax.sharding.Mesh, *, cached: bool = False) -> Assembly:
    """Put the system on the devices of ``mesh``, as its config says.

    Args:
        system: opened, with weights, or abstract (systems/open.py).
        cached: for an abstract system: its batches hold the feature cache's outputs.

    Raises:
        ValueError: a table of trained weights that does not fit the model, an unknown optimizer, or
            weights that no sharding rule matches.
    """
    config, abstract = system.config, is_abstract(system.model)
    if config.offload_encoders and not abstract:
        offloaded(system.model, system.unread(cached=bool(config.get("cache"))))
    split = split_shapes if abstract else split_model
    graphdef, trainable, frozen, groups = split(system.model, system.table)
    tx = make_optimizer(config, groups, system.update_rules())
    stats = statistics(frozen) if system.statistics else {}
    create = functools.partial(TrainState.create, tx=tx, ema_decay=config.ema_decay)
    shapes = jax.eval_shape(create, trainable, stats=stats)
    places, homes = state_shardings(mesh, config, shapes), frozen_shardings(mesh, config, frozen)
    if abstract:
        state, frozen = with_shardings(shapes, places), with_shardings(frozen, homes)
        if config.offload_encoders:
            frozen = without_shardings(frozen, system.unread(cached=cached))
    else:
        frozen = put_not_offloaded(frozen, homes)
        make = jax.jit(create, out_shardings=places)
        state = make(put(trainable, places.trainable), stats=stats)
    step = make_train_step(system, graphdef, tx, out=(places, replicated(mesh)))
    return Assembly(system, mesh, groups, graphdef, state, frozen, places, homes, step)


def summary(counts: dict[str, int]) -> str:
    """One line per group with its number of parameters, for the log."""
    lines = [
        f"  {group}: {n:,} trained" for group, n in sorted(counts.items()) if group != "frozen"
    ]
    return "\n".join([*lines, f"  frozen: {counts['frozen']:,}"])


def is_abstract(model: nnx.Module) -> bool:
    """Whether the model holds shapes instead of arrays."""
    return any(isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves(nnx.state(model)))


def with_shardings(tree: Any, shardings: Any) -> Any:
    """ShapeDtypeStructs with the shardings of a tree of the same structure."""
    return jax.tree.map(
        lambda s, place: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=place), tree, shardings
    )


def step_spec(mesh: jax.sharding.Mesh) -> jax.ShapeDtypeStruct:
    """The ShapeDtypeStruct of a step's number."""
    return jax.ShapeDtypeStruct((), jnp.int32, sharding=replicated(mesh))
