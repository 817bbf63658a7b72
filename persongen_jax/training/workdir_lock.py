"""Allows one run at a time in a working directory.

Two runs that write checkpoints and logs of the same name would delete each other's. The first one
locks ``run.lock``; the operating system releases the lock when the process ends, for whatever
reason. On file systems that do not lock between hosts, the file's modification time decides: the
owner updates it every few seconds, and a stale one belongs to a host that is gone.
"""

import contextlib
import fcntl
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

NAME = "run.lock"
BEAT = 5.0  # seconds
log = logging.getLogger(__name__)
PATIENCE = 4 * BEAT  # how long to wait for another host's lock to change


class WorkdirInUse(ValueError):
    """Another run is in the working directory; the message says which."""


@contextlib.contextmanager
def lock_workdir(workdir: Path) -> Iterator[None]:
    """Inside, no other run can start in ``workdir``, which is created if necessary.

    Raises:
        WorkdirInUse: another run is using it.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    path = workdir / NAME
    file = _take(path)
    stop = threading.Event()
    beat = threading.Thread(target=_heartbeat, args=(path, stop), name="workdir lock", daemon=True)
    try:
        file.seek(0)
        file.truncate()
        json.dump({"process": os.getpid(), "host": socket.gethostname()}, file)
        file.flush()
        beat.start()
        yield
    finally:
        stop.set()
        with contextlib.suppress(RuntimeError):  # the thread was never started
            beat.join()
        with contextlib.suppress(OSError):
            path.unlink()  # before the lock is released, so that it is still ours
        file.close()


def _take(path: Path):
    """Open the lock's file and lock it."""
    while True:
        file = open(path, "a+", encoding="utf-8")  # noqa: SIM115 (it is held as long as the run)
        try:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise WorkdirInUse(_in_use(path, _owner(path))) from None
            except OSError:  # a file system without locks
                _check_process(path)
            if not _is_at(file, path):  # its owner removed it meanwhile
                file.close()
                continue
            _check_other_host(path)
            return file
        except BaseException:
            file.close()
            raise


def _is_at(file, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _owner(path: Path) -> dict:
    """What the lock's file says; {} if it is empty, as just after its creation."""
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        return {"process": int(said["process"]), "host": str(said["host"])}
    except (OSError, ValueError, TypeError, KeyError):
        return {}


def _check_process(path: Path):
    """WorkdirInUse if the file names a running process of this host."""
    owner = _owner(path)
    if owner.get("host") != socket.gethostname() or owner["process"] == os.getpid():
        return
    try:
        os.kill(owner["process"], 0)
    except ProcessLookupError:
        return
    except PermissionError:
        pass  # another user's
    raise WorkdirInUse(_in_use(path, owner))


def _check_other_host(path: Path):
    """WorkdirInUse if the file names another host that still updates it."""
    owner = _owner(path)
    if not owner or owner["host"] == socket.gethostname():
        return
    log.warning(
        "%s: a lock of host %s; waiting up to %d s to see whether its run is alive",
        path,
        owner["host"],
        PATIENCE,
    )
    before, until = path.stat().st_mtime_ns, time.monotonic() + PATIENCE
    while time.monotonic() < until:
        time.sleep(BEAT / 5)
        try:
            if path.stat().st_mtime_ns != before:
                raise WorkdirInUse(_in_use(path, owner))
        except FileNotFoundError:
            return


def _in_use(path: Path, owner: dict) -> str:
    who = f"process {owner['process']} on host {owner['host']}" if owner else "another process"
    return f"{path.parent}: {who} is training here; wait for it, stop it, or give another --workdir"


def _heartbeat(path: Path, stop: threading.Event):
    while not stop.wait(BEAT):
        with contextlib.suppress(OSError):
            os.utime(path)
