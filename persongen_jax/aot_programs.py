"""The real step and the real sampler at full size, in shapes only, for devices that are not there.

Nothing is allocated: weights, optimizer and batch are ShapeDtypeStructs that lie on the topology's
mesh as train.py and pipeline.py would place them.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.interpreters import partial_eval
from ml_collections import ConfigDict

from persongen_jax import flop_count, sampling
from persongen_jax.diffusion import NoiseSchedule
from persongen_jax.features import (
    KINDS,
    MOMENTS,
    REFERENCES,
    TEXT,
    abstract_batch,
    cached_kinds,
    open_encoder,
)
from persongen_jax.full_size import abstract_model, network_configs
from persongen_jax.guidance import Guidance
from persongen_jax.models.platform import compile_for
from persongen_jax.offload import unread_roots
from persongen_jax.partition import make_optimizer, split_shapes
from persongen_jax.pipeline import _sample
from persongen_jax.sampling_plan import make_plan
from persongen_jax.sharding import (
    along_batch,
    frozen_shardings,
    path_of,
    replicated,
    state_shardings,
)
from persongen_jax.train_step import TrainState, build_step
from persongen_jax.weights.random_base import SCHEDULER


@dataclasses.dataclass
class Program:
    """What is to be compiled.

    Attributes:
        arguments: of ``function``, ShapeDtypeStructs with shardings; static ones as they are.
        parts: what of the arguments is what: name -> tree.
        images: pictures over all chips that one run makes, or trains on.
        steps: how often the loop runs of which the compiler cannot know it; 1 for a step.
        holds_all: arguments that it does not read lie on the chips all the same.
    """

    function: object
    arguments: tuple
    parts: dict
    images: int
    mesh: object
    steps: int = 1
    holds_all: bool = False

    def trace(self):
        with jax.set_mesh(self.mesh), compile_for("tpu"):
            return self.function.trace(*self.arguments)

    def lower(self, traced):
        with jax.set_mesh(self.mesh), compile_for("tpu"):
            return traced.lower()

    def flops(self) -> int:
        """Of all chips together; a loop that runs ``steps`` times counts once."""
        with jax.set_mesh(self.mesh), compile_for("tpu"):
            return flop_count.of_function(self.function, *self.arguments)

    def bytes_per_chip(self) -> dict[str, int]:
        return {name: tree_bytes(tree) for name, tree in self.parts.items()}

    def unread_bytes(self, traced) -> int:
        """Per chip, of what lies there though the program does not read it."""
        jaxpr, leaves = traced.jaxpr.jaxpr, jax.tree.leaves(self.arguments)
        _, read = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
        unread = [leaf for leaf, used in zip(leaves, read, strict=True) if not used]
        return tree_bytes(unread) if self.holds_all else 0


def training(config, mesh, *, cached: bool) -> Program:
    """The training step of a config; ``config.batch_size`` is over all chips.

    Args:
        cached: the batch brings what frozen encoders made, as with a feature cache.
    """
    model, method = _model(config)
    table = config.trainable or method.groups
    graphdef, trainable, frozen, groups = split_shapes(model, table)
    tx = make_optimizer(config, groups)
    create = functools.partial(TrainState.create, tx=tx, ema_decay=config.ema_decay)
    state = jax.eval_shape(create, trainable)
    places = state_shardings(mesh, config, state)
    state = _placed(state, places)
    frozen = _placed(frozen, frozen_shardings(mesh, config, frozen))
    if config.offload_encoders:
        frozen = _offloaded(frozen, unread_roots(config, model, method, cached=cached))
    batch = _spread(abstract_batch(config, model, method, cached), along_batch(mesh))
    empty_ids = np.zeros((2, model.text_encoder.config["max_position_embeddings"]), np.int32)
    schedule = NoiseSchedule.from_config(SCHEDULER)
    out = (places, replicated(mesh))
    step = build_step(config, model, method, schedule, empty_ids, graphdef, tx, out=out)
    number = jax.ShapeDtypeStruct((), jnp.int32, sharding=replicated(mesh))
    parts = {
        "frozen weights": frozen,
        "trained weights": (state.trainable, state.ema),
        "optimizer": state.opt_state,
        "batch": batch,
    }
    arguments = (state, frozen, batch, number)
    return Program(step, arguments, parts, config.batch_size, mesh, holds_all=True)


def sampler(config, mesh, *, steps: int) -> Program:
    """The sampler's loop, guidance and identity included, without the VAE."""
    model, method = _model(config)
    batch = abstract_batch(config, model, method, cached=False)
    graphdef, state = nnx.split(model)

    def condition(state, batch):
        return method.condition(nnx.merge(graphdef, state), batch)

    conditioning = jax.eval_shape(condition, state, batch)
    names = ("identity", *(name for name in conditioning.streams if name != "text"))
    scales = {name: np.ones(steps, np.float32) for name in names}
    guidance = Guidance(*[conditioning] * 3, conditioning.streams["text"].tokens)
    guidance = dataclasses.replace(guidance, scales={})
    guidance = _spread(guidance, along_batch(mesh))
    guidance = dataclasses.replace(guidance, scales=scales)

    unet_def, unet = nnx.split(model.unet)
    unet = _placed(unet, frozen_shardings(mesh, config, unet))
    side, channels = config.size // model.vae.vae_scale_factor, model.unet.config["in_channels"]
    plan = make_plan(SCHEDULER, steps)
    latents = jax.ShapeDtypeStruct((config.batch_size, side, side, channels), jnp.float32)
    carry = _spread(
        jax.eval_shape(functools.partial(sampling.init_carry, plan), latents), along_batch(mesh)
    )
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), config.batch_size))
    keys = _spread(keys, along_batch(mesh))
    scalars = (5.0, 0.0, 10, 0, steps)
    arguments = (unet_def, unet, plan, carry, guidance, keys, scalars)
    parts = {"weights": unet, "batch": (carry, guidance)}
    return Program(_sample, arguments, parts, config.batch_size, mesh, steps)


def encoders(config, mesh) -> Program:
    """What the frozen encoders compute in a training step without cached features, alone."""
    model, method = _model(config)
    whole = abstract_batch(config, model, method, cached=False)
    inputs = {MOMENTS: {"target": whole["pixel_values"]}, TEXT: whole["input_ids"]}
    inputs[REFERENCES] = {"references": whole["id_pixel_values"]}
    reasons = cached_kinds(config, model, method)
    inputs = {kind: _spread(inputs[kind], along_batch(mesh)) for kind in KINDS if not reasons[kind]}
    if not inputs:
        raise ValueError(f"no encoder of {config.method} is frozen: " + "; ".join(reasons.values()))
    opened = {kind: open_encoder(model, method, kind) for kind in inputs}
    states = {kind: state for kind, (_, state) in opened.items()}
    states = _placed(states, frozen_shardings(mesh, config, states))

    def encode(states, inputs):
        def one(kind, array):
            if kind == REFERENCES:
                array = array.reshape(-1, *array.shape[2:])
            return opened[kind][0](states[kind], array)

        return {k: {n: one(k, a) for n, a in arrays.items()} for k, arrays in inputs.items()}

    parts = {"weights": states, "batch": inputs}
    return Program(jax.jit(encode), (states, inputs), parts, config.batch_size, mesh)


def _model(config):
    # What a run starts from changes no size.
    config = ConfigDict({**config, "start_from": ""})
    model, method = abstract_model(config, *network_configs(config))
    model.unet.set_remat(config.remat)
    return model, method


def _placed(tree, shardings):
    """ShapeDtypeStructs with the shardings of a tree of the same form."""
    return jax.tree.map(
        lambda s, place: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=place), tree, shardings
    )


def _spread(tree, sharding):
    return _placed(tree, jax.tree.map(lambda _: sharding, tree))


def _offloaded(tree, roots: tuple[str, ...]):
    """The same without a place on the chips for what lies under ``roots``."""

    def offload(keys, leaf):
        if not path_of(keys).startswith(roots):
            return leaf
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)

    return jax.tree_util.tree_map_with_path(offload, tree)


def tree_bytes(tree) -> int:
    """Bytes of a tree of ShapeDtypeStructs on one of its chips; none of what has no place there."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
        if isinstance(leaf, jax.ShapeDtypeStruct) and leaf.sharding is not None
    )


def with_batch(config, per_chip: int, chips: int):
    """The config with ``per_chip`` pictures on each chip, in as many parts as it says."""
    return ConfigDict({**config, "batch_size": per_chip * chips})
