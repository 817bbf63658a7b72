"""Checkpoints of a run: what is trained, the optimizer, the step and the config. Orbax on disk.

Frozen weights are never written; the config names them by path. There is no random state to save:
it is a function of (seed, step). Saved as well are the running average of the trained weights, if
the run keeps one, and "progress", which resuming needs: the loader's state and the metrics of steps
that are not in the log yet.

A checkpoint is the folder ``checkpoints/<step>``. It gets this name once all of its files are
written and digests.json (training/integrity.py) lists them; until then it is ``<step>.saving``. A
damaged one is renamed to ``<step>.corrupt`` and left alone. With several processes, each writes
what its devices hold into the same folder; the first one writes digests, renames and deletes.
"""

import contextlib
import itertools
import logging
import math
import os
import re
import shutil
import threading
from pathlib import Path
from typing import Any, Self

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from persongen_jax.files import is_full
from persongen_jax.training import integrity
from persongen_jax.training.best_step import BEST, read_best
from persongen_jax.training.unverified import find_gaps

log = logging.getLogger(__name__)

# Time limit of a save in seconds, also for waiting for a process that fails.
TIMEOUT, NONE_YET, NONE_LEFT = 900, -1, -2


class CorruptCheckpoint(ValueError):
    """Checkpoints exist, but none of them can be used."""


class SaveFailed(OSError):
    """The last checkpoint of a run could not be written."""


def checkpoint_handler() -> ocp.CompositeCheckpointHandler:
    return ocp.CompositeCheckpointHandler(
        trainable=ocp.StandardCheckpointHandler(),
        opt_state=ocp.StandardCheckpointHandler(),
        ema=ocp.StandardCheckpointHandler(),
        stats=ocp.StandardCheckpointHandler(),
        progress=ocp.JsonCheckpointHandler(),
        config=ocp.JsonCheckpointHandler(),
    )


# ---- Writing -----------------------------------------------------------------------------------


class Checkpoints:
    """The checkpoints of one working directory; saving runs in the background.

    A save that fails, for example on a full disk, logs a warning and keeps the earlier checkpoints.
    :meth:`close` raises if that was the last save. As a context manager, it closes on exit.

    Args:
        workdir: of the run.
        keep: how many to keep; older ones are deleted when a new one is complete; 0: keep all.

    Attributes:
        kept: a step whose checkpoint is not deleted, whatever its age; None: no such step.
    """

    def __init__(self, workdir: str | Path, *, keep: int = 3):
        self.folder = Path(workdir).absolute() / "checkpoints"
        self.keep = keep
        self.kept: int | None = None
        self._first = jax.process_index() == 0
        self._saved: int | None = None  # step of the newest complete one
        self._saving: int | None = None  # of the next
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None
        self._failure: str | None = None
        self._checkpointer = _checkpointer()
        if self._first:
            self.folder.mkdir(parents=True, exist_ok=True)
            for path in self._delete_unfinished():
                log.warning("%s: incomplete checkpoint, removed", path)

    def newest(self) -> int | None:
        """The step of the newest intact checkpoint; None if none was ever made.

        Its files are compared with their digests. Damaged checkpoints are renamed, with a warning.

        Raises:
            CorruptCheckpoint: there are checkpoints, but none is intact.
        """
        step = self._newest_intact() if self._first else 0
        if jax.process_count() > 1:
            step = int(multihost_utils.broadcast_one_to_all(np.int64(step)))
        if step == NONE_LEFT:
            raise CorruptCheckpoint(
                f"{self.folder}: no checkpoint there is intact, see the warnings; restore a "
                "copy of one, or give another --workdir, or remove that folder to start over"
            )
        self._saved = None if step == NONE_YET else step
        return self._saved

    def _newest_intact(self) -> int:
        for step in reversed(saved_steps(self.folder)):
            if is_intact(self.folder / str(step)):
                return step
            aside = _free_name(self.folder / f"{step}.corrupt")
            os.rename(self.folder / str(step), aside)
            log.warning("moved to %s; trying the checkpoint before it", aside)
        return NONE_LEFT if any(self.folder.glob("*.corrupt*")) else NONE_YET

    def save(
        self,
        step: int,
        trainable: dict,
        opt_state: Any,
        config: dict,
        ema: dict | None = None,
        progress: Any = None,
        stats: dict | None = None,
    ) -> None:
        """Save the state after ``step`` updates.

        Waits for the previous save if it is still running.

        Args:
            ema: the running average of ``trainable``; None or empty if there is none.
            progress: anything that JSON can hold.
            stats: statistics that layers gather, by path; None or empty if there are none.
        """
        self._wait()
        self._saving = step
        if self._first:
            self._delete_unfinished()  # again, as Orbax may go on writing after a failed save
        items = {
            "trainable": ocp.args.StandardSave(trainable),
            "opt_state": ocp.args.StandardSave(opt_state),
            "progress": ocp.args.JsonSave(progress or {}),
            "config": ocp.args.JsonSave(config),
        }
        more = {"ema": ema, "stats": stats}
        items |= {name: ocp.args.StandardSave(tree) for name, tree in more.items() if tree}
        arrays = jax.tree.leaves((trainable, opt_state, ema or {}, stats or {}))
        size = sum(math.prod(x.shape) * np.dtype(x.dtype).itemsize for x in arrays)
        try:
            # The values are copied from the devices here; the rest is done in the background.
            self._checkpointer.save(self._unfinished(step), args=ocp.args.Composite(**items))
        except OSError as error:
            self._error = error
        self._thread = threading.Thread(target=self._finish, args=(step, size), name="checkpoint")
        self._thread.start()

    def _unfinished(self, step: int) -> Path:
        return self.folder / f"{step}.saving"

    def _finish(self, step: int, size: int):
        """In the background: wait for Orbax, write the digests, rename the checkpoint."""
        try:
            if self._error:
                raise self._error
            self._checkpointer.wait_until_finished()
            if self._first:
                integrity.write_digests(self._unfinished(step))
                os.rename(self._unfinished(step), self.folder / str(step))
                integrity.sync_folder(self.folder)
                self._delete_old()
        except Exception as error:  # training goes on, whatever it is
            self._error = error
            if self._first:
                self._delete_unfinished()
            self._failure = (
                f"{self.folder}: the checkpoint of step {step} could not be saved: "
                f"{_short_message(error)}. It takes up to {_megabytes(size)}, and "
                f"{_megabytes(shutil.disk_usage(self.folder).free)} are free there"
            )
            log.warning("%s; the next save tries again", self._failure)

    def _wait(self):
        """Wait for the running save; every process learns whether all of them succeeded."""
        if self._thread is None:
            return
        self._thread.join()
        self._thread = None
        failed = self._error is not None
        if jax.process_count() > 1:
            failed = multihost_utils.process_allgather(np.array(failed)).any()
        if failed:
            self._error = None
            self._failure = self._failure or f"{self.folder}: another process could not save"
            self._checkpointer = _checkpointer()  # the old one still holds the failed save
        else:
            self._saved, self._failure = self._saving, None

    def has(self, step: int) -> bool:
        """Whether ``step`` is the newest complete checkpoint; waits for a running save."""
        self._wait()
        return self._saved == step

    def _delete_old(self):
        old = saved_steps(self.folder)[: -self.keep] if self.keep else []
        for step in (step for step in old if step != self.kept):
            # Rename first: a half-deleted checkpoint must not look like a damaged one.
            doomed = self.folder / f"{step}.deleting"
            with contextlib.suppress(OSError):
                os.rename(self.folder / str(step), doomed)
                shutil.rmtree(doomed)

    def _delete_unfinished(self) -> list[Path]:
        """Delete unfinished and half-deleted checkpoints; return the unfinished ones."""
        unfinished = sorted(self.folder.glob("*.saving*"))
        for path in [*unfinished, *self.folder.glob("*.deleting")]:
            shutil.rmtree(path, ignore_errors=True)
        return unfinished

    def config(self, step: int) -> dict:
        """The config that ``step`` was saved with."""
        items = ocp.args.Composite(config=ocp.args.JsonRestore())
        return self._checkpointer.restore(self.folder / str(step), args=items)["config"]

    def restore(
        self,
        step: int,
        trainable: dict,
        opt_state: Any,
        ema: dict | None = None,
        stats: dict | None = None,
    ) -> tuple[dict, Any, dict, dict, Any]:
        """(trainable, opt_state, ema, stats, progress) of ``step``, placed like the arguments.

        The arguments are arrays or ShapeDtypeStructs with a sharding.

        Raises:
            ValueError: the checkpoint has other arrays or other shapes than the arguments.
        """
        folder = self.folder / str(step)
        _check_shapes(folder, trainable)
        saved = {path.name for path in folder.iterdir()}
        items = {
            "trainable": ocp.args.StandardRestore(_abstract(trainable)),
            "opt_state": ocp.args.StandardRestore(_abstract(opt_state)),
        }
        more = {name: tree for name, tree in (("ema", ema), ("stats", stats)) if tree}
        items |= {n: ocp.args.StandardRestore(_abstract(tree)) for n, tree in more.items()}
        if "progress" in saved:
            items["progress"] = ocp.args.JsonRestore()
        restored = self._checkpointer.restore(folder, args=ocp.args.Composite(**items))
        progress = restored["progress"] if "progress" in items else {}
        ema, stats = (restored[name] if name in more else {} for name in ("ema", "stats"))
        return restored["trainable"], restored["opt_state"], ema, stats, progress

    def close(self) -> None:
        """Wait for the running save.

        Raises:
            SaveFailed: the last save failed.
        """
        self._wait()
        self._checkpointer.close()
        if self._failure:
            if self._first:
                self._delete_unfinished()
            raise SaveFailed(
                f"{self._failure}. Free some space and repeat the command: it resumes from the "
                "last complete checkpoint"
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, error, *_):
        if error is None:
            self.close()
        elif self._thread and jax.process_count() == 1:
            self._thread.join()  # the running save may still succeed


def _checkpointer():
    # Create folders right away: if that fails in the background, Orbax's other threads wait minutes
    # for it and delay the end of the process.
    options = ocp.options.AsyncOptions(
        timeout_secs=TIMEOUT, create_directories_asynchronously=False
    )
    return ocp.AsyncCheckpointer(checkpoint_handler(), async_options=options)


def _abstract(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def _short_message(error: Exception) -> str:
    """The cause, which storage libraries put at the end of a long line of function names."""
    text = " ".join(str(error).split()) or type(error).__name__
    if is_full(error):
        return f"no space left on the device ({text[:200]})"
    return text[:400]


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"


# ---- Finding them --------------------------------------------------------------------------


def saved_steps(folder: Path) -> list[int]:
    """The steps whose checkpoints a folder holds, in order."""
    # Only names that this project writes: 0003 or other digits are somebody's copies.
    found = (path for path in folder.glob("*") if re.fullmatch("0|[1-9][0-9]*", path.name))
    return sorted(int(path.name) for path in found if path.is_dir())


def is_intact(folder: Path) -> bool:
    """Whether a checkpoint's files are as they were written; logs a warning for each fault."""
    try:
        faults = integrity.find_faults(folder)
    except FileNotFoundError:  # an old checkpoint, or a partial copy
        faults = find_gaps(folder)
        if not faults:
            log.warning("%s: has no %s; it is used unverified", folder, integrity.NAME)
    if faults:
        more = f", and {len(faults) - 3} more" if len(faults) > 3 else ""
        log.warning("%s is damaged: %s%s", folder, "; ".join(faults[:3]), more)
    return not faults


def _free_name(path: Path) -> Path:
    """``path``, or ``path`` with a number appended if that name is taken."""
    names = (path.with_name(f"{path.name}{n}") for n in itertools.count(2))
    return next(name for name in itertools.chain([path], names) if not name.exists())


def find_run(path: str | Path, step: int | None = None) -> tuple[Path, int]:
    """(working directory, step) of a run, by its working directory, RUN/checkpoints/STEP or …/best.

    Args:
        step: of the checkpoint; None: the newest intact one. Damaged ones are reported in a
            warning.

    Raises:
        FileNotFoundError: there is no checkpoint, or none of ``step``.
        CorruptCheckpoint: the checkpoint is damaged.
    """
    path, named = split_step(path)
    step = named if step is None else step
    steps = saved_steps(path / "checkpoints")
    if not steps:
        raise FileNotFoundError(
            f"{path}: no checkpoint there; give the --workdir of a training run"
        )
    if step is not None and step not in steps:
        there = ", ".join(map(str, steps))
        raise FileNotFoundError(f"{path}: no checkpoint of step {step}; there are {there}")
    for candidate in reversed(steps) if step is None else [step]:
        if is_intact(path / "checkpoints" / str(candidate)):
            return path, candidate
    which = "no checkpoint there is" if step is None else f"the checkpoint of step {step} is not"
    raise CorruptCheckpoint(f"{path}: {which} intact, see the warnings; restore a copy of it")


def split_step(path: str | Path) -> tuple[Path, int | None]:
    """(RUN, STEP) of RUN/checkpoints/STEP or …/best; (RUN, None) of RUN and RUN/checkpoints."""
    path = Path(path).absolute()
    if path.parent.name == "checkpoints" and path.name == BEST:
        return path.parent.parent, read_best(path.parent.parent)
    if path.parent.name == "checkpoints" and path.name.isdigit():
        return path.parent.parent, int(path.name)
    return (path.parent if path.name == "checkpoints" else path), None


def _check_shapes(folder: Path, trainable: dict):
    """ValueError with the paths if a checkpoint's trained arrays differ from these."""
    there = {path: tuple(x.shape) for path, x in shapes_of(folder, "trainable").items()}
    here = {path: tuple(x.shape) for path, x in trainable.items()}
    paths = sorted(p for p in there.keys() | here.keys() if there.get(p) != here.get(p))
    if paths:
        shown = ", ".join(f"{p} (was {there.get(p)}, now {here.get(p)})" for p in paths[:3])
        more = f", and {len(paths) - 3} more" if len(paths) > 3 else ""
        raise ValueError(
            f"{folder}: what is trained now has other arrays: {shown}{more}; give another "
            "--workdir, or remove that one to start over"
        )


def shapes_of(folder: Path, item: str) -> dict:
    """Shape and dtype of every array of one item of a checkpoint's folder; reads no array."""
    with ocp.Checkpointer(checkpoint_handler()) as checkpointer:
        return dict(checkpointer.metadata(folder).item_metadata[item])
