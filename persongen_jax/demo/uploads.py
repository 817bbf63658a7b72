"""The folder of what visitors upload, which goes with the page, however that ends."""

import contextlib
import shutil
import signal
import tempfile
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

from persongen_jax.training.workdir_lock import WorkdirInUse, lock_workdir

PREFIX = ".uploads-"
ENDS = (signal.SIGTERM, signal.SIGHUP)  # from a service manager; from a terminal that is closed


@contextlib.contextmanager
def folder_of_uploads(out: Path) -> Iterator[Path]:
    """A new folder below ``out``, deleted at the end.

    It is locked meanwhile. Folders of pages that were killed have no lock: they are deleted first.
    """
    remove_stale(out)
    with contextlib.ExitStack() as stack:
        # Not the locked folder itself: what lies in it may be asked for by its name.
        files = _locked(out, stack) / "files"
        files.mkdir()
        yield files


def _locked(out: Path, stack: contextlib.ExitStack) -> Path:
    """A new folder with a lock."""
    while True:
        own = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=PREFIX, dir=out)))
        try:
            stack.enter_context(lock_workdir(own))
        except WorkdirInUse:  # another page took it for stale before it was locked
            continue
        return own


def remove_stale(out: Path) -> None:
    """Deletes the folders of uploads below ``out`` that no running page holds."""
    for folder in out.glob(f"{PREFIX}*"):
        try:
            with lock_workdir(folder):
                shutil.rmtree(folder)
        except WorkdirInUse:
            continue
        except OSError as error:
            warnings.warn(f"{folder}: old uploads that are not deleted: {error}", stacklevel=2)


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """Inside, ENDS raise KeyboardInterrupt once, as Ctrl-C does; those already ignored stay so.

    Python lets the main thread alone set what a signal does; elsewhere nothing changes.
    """

    def interrupt(number, frame):
        for each in before:
            signal.signal(each, signal.SIG_IGN)  # a second one must not end the deletion
        raise KeyboardInterrupt

    usual = [each for each in ENDS if signal.getsignal(each) == signal.SIG_DFL]
    in_main = threading.current_thread() is threading.main_thread()
    before = {each: signal.signal(each, interrupt) for each in usual if in_main}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
