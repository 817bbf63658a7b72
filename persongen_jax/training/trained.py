"""Reads what a run has trained, for inference and for runs that start from it."""

from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

from persongen_jax.training.checkpoint import (
    checkpoint_handler,
    find_run,
    saved_steps,
    shapes_of,
    split_step,
)


def load_trained(
    path: str | Path, sharding: jax.sharding.Sharding, step: int | None = None
) -> tuple[dict, dict]:
    """(trainable arrays by path, config) of a run's checkpoint, for inference.

    These are the running average if the run kept one. ``step`` and errors: see :func:`find_run`.
    """
    return read_trained(*find_run(path, step), sharding)


def read_trained(workdir: Path, step: int, sharding: jax.sharding.Sharding) -> tuple[dict, dict]:
    """:func:`load_trained` for what find_run returned."""
    folder = workdir / "checkpoints" / str(step)
    names = ["ema" if (folder / "ema").is_dir() else "trainable"]
    names += ["stats"] if (folder / "stats").is_dir() else []
    items = {"config": ocp.args.JsonRestore()}
    for name in names:
        target = {
            path: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
            for path, x in shapes_of(folder, name).items()
        }
        items[name] = ocp.args.StandardRestore(target)
    with ocp.Checkpointer(checkpoint_handler()) as checkpointer:
        restored = checkpointer.restore(folder, args=ocp.args.Composite(**items))
    arrays = {}
    for name in names:
        arrays |= restored[name]
    return arrays, restored["config"]


def trained_shapes(path: str | Path) -> dict[str, tuple[np.dtype, tuple[int, ...]]]:
    """(dtype, shape) of every trained array of a run's newest checkpoint; reads no array."""
    workdir, step = find_run(path)
    arrays = shapes_of(workdir / "checkpoints" / str(step), "trainable")
    return {name: (np.dtype(x.dtype), tuple(x.shape)) for name, x in arrays.items()}


def saved_config(path: str | Path) -> dict | None:
    """The config of a run's newest checkpoint, or of the one that is named; None if there is none
    that can be read.

    The checkpoint is not verified; whoever loads it does that.
    """
    path, step = split_step(path)
    steps = saved_steps(path / "checkpoints")
    if not steps or step not in (None, *steps):
        return None
    items = ocp.args.Composite(config=ocp.args.JsonRestore())
    with ocp.Checkpointer(checkpoint_handler()) as checkpointer:
        for candidate in reversed(steps) if step is None else [step]:
            try:
                folder = path / "checkpoints" / str(candidate)
                return checkpointer.restore(folder, args=items)["config"]
            except Exception:  # a damaged one, of which whoever loads it will tell
                continue
    return None
