"""A few steps of one training on several meshes; run in separate processes by test_sharding.

    python -m tests.parallel.sharded_training OUT BASE PHOTOS MESH…

A MESH is "DATAxFSDP", followed by "f" if frozen weights are sharded too. OUT/MESH.npz gets losses,
weights and moments; OUT/MESH a checkpoint, and OUT/MESH.json observations. With an empty BASE a
small model is trained instead of the tiny SDXL, with a name of SYSTEMS that system, with
METHOD@BASE that method instead of PhotoMaker.
"""

import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import persongen_jax
from data_pipeline.examples.batches import Arrays
from persongen_jax.models.layers import LayerNorm, Linear
from persongen_jax.models.lora import new_lora
from persongen_jax.parallel import distributed
from persongen_jax.parallel.sharding import (
    make_mesh,
    put_batch,
    shardings_by_path,
    state_shardings,
    to_host,
)
from persongen_jax.systems.assembly import assemble
from persongen_jax.systems.base import System
from persongen_jax.systems.open import open_system
from persongen_jax.training.checkpoint import Checkpoints
from persongen_jax.training.step import TrainState, compile_step
from tests.helpers.training_runs import small_config
from tests.systems.ddpm_config import get_config as ddpm_config
from tests.systems.digits_config import get_config as digits_config

STEPS = 2
ASSETS = Path(persongen_jax.__file__).parent / "assets"
RECOGNISER = ASSETS / "face_net" / "model.safetensors"
PLAIN = "tests.losses.plain:Plain"
SYSTEMS = {"digits": digits_config, "ddpm": ddpm_config}


class Small(nnx.Module):
    """Two layers and a LoRA: the smallest model with leaves of every kind."""

    def __init__(self):
        kw = {"dtype": jnp.float32, "param_dtype": jnp.float32, "rngs": nnx.Rngs(0)}
        self.first = Linear(64, 256, **kw)
        self.norm = LayerNorm(256, **kw)
        self.second = Linear(256, 32, **kw)
        self.second.lora = new_lora(self.second, 2, rngs=nnx.Rngs(1))

    def __call__(self, x):
        return self.second(jax.nn.sigmoid(self.norm(self.first(x))))


class SmallSystem(System):
    """A system that compiles in no time, on random examples."""

    groups = ((r"second/kernel|norm/.*|second/lora/(down|up)", "lora"),)

    def __init__(self, config):
        self.config, self.model = config, Small()

    def source(self):
        rng, rows = np.random.default_rng(0), STEPS * self.config.batch_size
        sides = {"x": 64, "y": 32}
        arrays = {name: rng.standard_normal((rows, n), np.float32) for name, n in sides.items()}
        return Arrays(arrays, seed=0)

    def draw(self, key_of, batch):
        return {"noise": jax.random.normal(key_of(0), batch["x"].shape)}

    def losses(self, model, batch, draws):
        # Far from the target, because otherwise Adam would turn rounding errors near zero into
        # whole steps.
        error = model(batch["x"] + draws["noise"]) - batch["y"] - 10
        return {"loss": (error**2).sum(axis=-1)}


def numbers(state) -> dict[str, np.ndarray]:
    """All arrays of a TrainState by path."""
    leaves = jax.tree_util.tree_flatten_with_path(state)[0]
    return {jax.tree_util.keystr(path): to_host(leaf) for path, leaf in leaves}


def run(config, mesh, out: Path):
    system = open_system(config, mesh) if config.get("base", "digits") else SmallSystem(config)
    parts = assemble(system, mesh)
    state, frozen, source = parts.state, parts.frozen, system.examples(0)
    batches = [put_batch(mesh, next(source)) for _ in range(STEPS)]
    with jax.set_mesh(mesh):
        program, *_ = compile_step(parts.step, state, frozen, batches[0], np.int32(0))
    found = {}
    for i, batch in enumerate(batches):
        state, metrics = program(state, frozen, batch, np.int32(i))
        found |= {f"{name}/{i}": to_host(value) for name, value in metrics.items()}
    found |= numbers(state)
    seen = observe(config, mesh, state, frozen, program)
    checkpoints = Checkpoints(out)
    checkpoints.save(STEPS, state.trainable, state.opt_state, {}, state.ema)
    checkpoints.close()
    if distributed.is_first():
        np.savez(out.with_suffix(".npz"), **found)
        out.with_suffix(".json").write_text(json.dumps(seen))
    return state


def observe(config, mesh, state, frozen, program) -> dict:
    """Bytes on one device and in total, trained and not; FLOPs of one device."""

    def bytes_of(tree):
        leaves = jax.tree.leaves(tree)
        here = sum(leaf.addressable_shards[0].data.nbytes for leaf in leaves)
        return [here, sum(leaf.nbytes for leaf in leaves)]

    wanted = jax.tree.leaves(shardings_by_path(mesh, state))
    placed = [x.sharding for x in jax.tree.leaves(state)]
    return {
        "state": bytes_of(state),
        "frozen": bytes_of(frozen),
        "as asked": all(
            a.is_equivalent_to(b, x.ndim)
            for a, b, x in zip(placed, wanted, jax.tree.leaves(state), strict=True)
        ),
        "flops": program.cost_analysis()["flops"],
    }


def restore(config, mesh, folder: Path, like) -> dict[str, np.ndarray]:
    """The numbers of a checkpoint, restored onto another mesh; ``like``: a TrainState."""
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), like)
    places = state_shardings(mesh, config, shapes)
    target = jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        shapes,
        places,
    )
    checkpoints = Checkpoints(folder)
    wanted = (target.trainable, target.opt_state, target.ema, target.stats)
    *saved, _ = checkpoints.restore(STEPS, *wanted)
    checkpoints.close()
    state = TrainState(*saved)
    for x, sharding in zip(jax.tree.leaves(state), jax.tree.leaves(places), strict=True):
        assert x.sharding.is_equivalent_to(sharding, x.ndim)
    return numbers(state)


def parse(name: str) -> tuple[int, int, bool]:
    """ "4x2f" to (4, 2, True)."""
    data, fsdp = name.rstrip("f").split("x")
    return int(data), int(fsdp), name.endswith("f")


def main(out, base, photos, *names):
    with distributed.run_distributed():
        method, _, base = base.rpartition("@")
        config = small_config(base, photos)
        config.batch_size = 8 if base else 256
        if method:
            config.method, config.face_encoder = method, str(RECOGNISER)
            config.facecdm_reduced, config.optimizer_options = 8, {"eps": 1e-2}
            if method == PLAIN:  # which trains nothing but for losses on decoded images
                config.lr_hint = 1e-2
                losses = ("reconstruction", "keypoints", "identity")
                config.losses = {name: {"weight": 1.0, "noise_to": 0.99} for name in losses}
                config.loss_pose_net = f"keypoints:{ASSETS / 'sdxl' / 'face_detector'}"
                config.loss_face_net = str(RECOGNISER)
        if base in SYSTEMS:
            config = SYSTEMS[base]()
            # Otherwise Adam would turn rounding errors near zero into whole steps.
            config.optimizer_options = {"eps": 1e-2}
        for name in names:
            data, config.fsdp, config.shard_frozen = parse(name)
            mesh = make_mesh(jax.devices()[: data * config.fsdp], fsdp=config.fsdp)
            state = run(config, mesh, Path(out) / name)
            if jax.process_count() > 1:
                continue
            for devices in (mesh.size // 2, 1) if mesh.size > 1 else ():
                smaller = make_mesh(jax.devices()[:devices], fsdp=min(devices, 2))
                found = restore(config, smaller, Path(out) / name, state)
                for key, value in numbers(state).items():
                    assert np.array_equal(found[key], value), (name, devices, key)


if __name__ == "__main__":
    main(*sys.argv[1:])
