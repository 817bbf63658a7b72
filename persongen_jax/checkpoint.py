"""Checkpoints of a run: what is trained, the optimizer, the step and the config. Orbax on disk.

Frozen weights are never written; the config names them by path. There is no random state to save:
it is a function of (seed, step). Beside these lie the running average of what is trained, if the
run keeps one, and "progress", plain data with which the run goes on: the loader's state and the
metrics of the steps that no line of the log has yet.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp


def _handlers():
    return {
        "trainable": ocp.StandardCheckpointHandler(),
        "opt_state": ocp.StandardCheckpointHandler(),
        "ema": ocp.StandardCheckpointHandler(),
        "progress": ocp.JsonCheckpointHandler(),
        "config": ocp.JsonCheckpointHandler(),
    }


class Checkpoints:
    """The checkpoints of one working directory; saving runs in the background."""

    def __init__(self, workdir, *, keep: int = 3):
        self.folder = Path(workdir).absolute() / "checkpoints"
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True)
        self.manager = ocp.CheckpointManager(
            self.folder, options=options, item_handlers=_handlers()
        )

    def save(self, step: int, trainable: dict, opt_state, config: dict, ema=None, progress=None):
        """``step``: how many updates have been made.

        Args:
            ema: the running average of ``trainable``; None or empty if there is none.
            progress: what JSON can hold.
        """
        items = {
            "trainable": ocp.args.StandardSave(trainable),
            "opt_state": ocp.args.StandardSave(opt_state),
            "progress": ocp.args.JsonSave(progress or {}),
            "config": ocp.args.JsonSave(config),
        }
        if ema:
            items["ema"] = ocp.args.StandardSave(ema)
        self.manager.save(step, args=ocp.args.Composite(**items))

    def latest_step(self) -> int | None:
        return self.manager.latest_step()

    def restore(self, step: int, trainable: dict, opt_state, ema=None):
        """(trainable, opt_state, ema, progress) of ``step``, laid out and placed as those given.

        With an ``ema`` asked for that was not saved, it starts from what was trained.
        """
        saved = {path.name for path in (self.folder / str(step)).iterdir()}
        items = {
            "trainable": ocp.args.StandardRestore(_abstract(trainable)),
            "opt_state": ocp.args.StandardRestore(_abstract(opt_state)),
        }
        if ema and "ema" in saved:
            items["ema"] = ocp.args.StandardRestore(_abstract(ema))
        if "progress" in saved:
            items["progress"] = ocp.args.JsonRestore()
        restored = self.manager.restore(step, args=ocp.args.Composite(**items))
        average = {}
        if ema:
            average = restored["ema" if "ema" in items else "trainable"]
            average = jax.tree.map(jnp.copy, average)  # memory of its own, for the step to take
        progress = restored["progress"] if "progress" in items else {}
        return restored["trainable"], restored["opt_state"], average, progress

    def close(self):
        """Waits for the saves under way."""
        self.manager.wait_until_finished()
        self.manager.close()


def _abstract(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def find_run(path) -> tuple[Path, int]:
    """(working directory, newest step) of a run, given that directory.

    Raises:
        FileNotFoundError: nothing trained lies there.
    """
    path = Path(path).absolute()
    folder = path / "checkpoints"
    steps = [int(p.name) for p in folder.glob("*") if p.name.isdigit()] if folder.is_dir() else []
    if not steps:
        raise FileNotFoundError(
            f"{path}: no checkpoint there; give the --workdir of a training run"
        )
    return path, max(steps)


def load_trained(path, sharding) -> tuple[dict, dict]:
    """(trainable arrays by path, config) of the newest checkpoint of a run, for inference.

    Of a run that kept a running average, the arrays are that.
    """
    workdir, step = find_run(path)
    item = "ema" if (workdir / "checkpoints" / str(step) / "ema").is_dir() else "trainable"
    with ocp.CheckpointManager(workdir / "checkpoints", item_handlers=_handlers()) as manager:
        shapes = manager.item_metadata(step)[item]
        target = {
            name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
            for name, x in dict(shapes).items()
        }
        items = {item: ocp.args.StandardRestore(target), "config": ocp.args.JsonRestore()}
        restored = manager.restore(step, args=ocp.args.Composite(**items))
    return restored[item], restored.config
