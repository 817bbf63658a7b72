"""Checkpoints of a run: what is trained, the optimizer, the step and the config. Orbax on disk.

Frozen weights are never written; the config names them by path. There is no data position and no
random state to save: both are functions of (seed, step).
"""

from pathlib import Path

import jax
import orbax.checkpoint as ocp


def _handlers():
    return {
        "trainable": ocp.StandardCheckpointHandler(),
        "opt_state": ocp.StandardCheckpointHandler(),
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

    def save(self, step: int, trainable: dict, opt_state, config: dict):
        """``step``: how many updates have been made."""
        self.manager.save(
            step,
            args=ocp.args.Composite(
                trainable=ocp.args.StandardSave(trainable),
                opt_state=ocp.args.StandardSave(opt_state),
                config=ocp.args.JsonSave(config),
            ),
        )

    def latest_step(self) -> int | None:
        return self.manager.latest_step()

    def restore(self, step: int, trainable: dict, opt_state):
        """(trainable, opt_state) of ``step``, laid out and placed as the given ones are."""
        restored = self.manager.restore(
            step,
            args=ocp.args.Composite(
                trainable=ocp.args.StandardRestore(_abstract(trainable)),
                opt_state=ocp.args.StandardRestore(_abstract(opt_state)),
            ),
        )
        return restored.trainable, restored.opt_state

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
    """(trainable arrays by path, config) of the newest checkpoint of a run, for inference."""
    workdir, step = find_run(path)
    with ocp.CheckpointManager(workdir / "checkpoints", item_handlers=_handlers()) as manager:
        shapes = manager.item_metadata(step)["trainable"]
        target = {
            name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
            for name, x in dict(shapes).items()
        }
        restored = manager.restore(
            step,
            args=ocp.args.Composite(
                trainable=ocp.args.StandardRestore(target), config=ocp.args.JsonRestore()
            ),
        )
    return restored.trainable, restored.config
