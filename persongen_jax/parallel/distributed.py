"""Runs several processes as one: who takes part, and what happens when one is lost.

    with distributed.run_distributed():  # before anything else touches a device
        train(config, workdir)

The first of these that applies says that there are several:

* JAX_COORDINATOR_ADDRESS (host:port of process 0), JAX_NUM_PROCESSES and JAX_PROCESS_ID; in an
  indexed Kubernetes job JOB_COMPLETION_INDEX replaces the last;
* Slurm: a step of more than one task, started by srun;
* a TPU: its hosts find each other.

Otherwise there is one process. PERSONGEN_HEARTBEAT_SECONDS (60) is how long a process may be silent
before the others consider it lost and end.
"""

import atexit
import contextlib
import importlib.util
import os
import re
import socket
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from data_pipeline.cli import KNOWN

Answer = TypeVar("Answer", bool, int)

HEARTBEAT = 60  # seconds
SLURM_PORTS = 61440, 4096  # the first, and how many; the job's id selects one
ALIVE = "persongen_jax/alive/"
ENDED, FAILED = "ended", "failed"
STATUS = re.compile(r"[A-Z_]+: ")  # prefix of the runtime's errors; some come as a ValueError
REMEDY = "the same command on all hosts resumes from the last checkpoint"

_watch = None


# ---- Who takes part ----------------------------------------------------------------------------


def initialize(environ: Mapping[str, str] = os.environ) -> None:
    """Join the other processes, if there are any, and watch for lost ones.

    Raises:
        ValueError: the environment is incomplete or contradictory.
        OSError: the others could not be reached.
    """
    global _watch
    if _watch or jax.distributed.is_initialized():
        return
    seconds = heartbeat_seconds(environ)
    # It would handle SIGTERM itself; training/stopping.py does that on all hosts.
    jax.config.update("jax_enable_preemption_service", False)
    found = jax_variables(environ) or slurm_step(environ)
    if found is None and not has_tpu(environ):
        return
    # JAX's own watchdog is the fallback: it kills the process, whereas ours gives the reason.
    timeouts: dict[str, Any] = {
        "heartbeat_timeout_seconds": 2 * seconds,
        "shutdown_timeout_seconds": 2 * seconds,
    }
    try:
        jax.distributed.initialize(**(found or {}), **timeouts)
    except ValueError:
        if found:
            raise
        return  # a TPU with a single host
    except RuntimeError as error:
        where = f" at {found['coordinator_address']}" if found else ""
        raise OSError(
            f"process 0 of the run{where} was not reached, or not all processes have started: "
            f"{str(error).splitlines()[0]}"
        ) from error
    if jax.process_count() > 1:
        _watch = Watch(seconds)
        print(
            f"process {jax.process_index()} of {jax.process_count()}, {jax.local_device_count()} "
            f"devices each; if one is lost, all end within {2 * seconds} s, and {REMEDY}"
        )


def heartbeat_seconds(environ: Mapping[str, str]) -> int:
    text = environ.get("PERSONGEN_HEARTBEAT_SECONDS", str(HEARTBEAT))
    if not text.isdecimal() or int(text) < 5:
        raise ValueError(f"PERSONGEN_HEARTBEAT_SECONDS={text!r}: give whole seconds, 5 or more")
    return int(text)


def jax_variables(environ: Mapping[str, str]) -> dict | None:
    """Arguments of jax.distributed.initialize from the three variables; None without them.

    Raises:
        ValueError: one of them is missing or not a number in its range.
    """
    names = ["JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"]
    if "JAX_PROCESS_ID" not in environ and "JOB_COMPLETION_INDEX" in environ:
        names[2] = "JOB_COMPLETION_INDEX"
    given = [name for name in names[:2] + ["JAX_PROCESS_ID"] if environ.get(name)]
    if not given:
        return None
    missing = [name for name in names if not environ.get(name)]
    if missing:
        raise ValueError(
            f"{', '.join(given)} given without {', '.join(missing)}: several processes need all of "
            "JAX_COORDINATOR_ADDRESS=HOST:PORT, JAX_NUM_PROCESSES and JAX_PROCESS_ID (0 for the "
            "process on HOST), one process none of them"
        )
    address, count, index = (environ[name] for name in names)
    if not re.fullmatch(r".+:\d+", address):
        raise ValueError(f"JAX_COORDINATOR_ADDRESS={address!r}: give HOST:PORT of process 0")
    for name, text in zip(names[1:], (count, index), strict=True):
        if not text.isdecimal():
            raise ValueError(f"{name}={text!r} is not a whole number")
    if not int(index) < int(count):
        raise ValueError(f"{names[2]}={index} must be below JAX_NUM_PROCESSES={count}")
    return {
        "coordinator_address": address,
        "num_processes": int(count),
        "process_id": int(index),
        "cluster_detection_method": "deactivate",
    }


def slurm_step(environ: Mapping[str, str]) -> dict | None:
    """The same from srun's variables, one task on each node; None unless there are several.

    Raises:
        ValueError: several tasks on a node, which would compete for its devices.
    """
    count = environ.get("SLURM_STEP_NUM_TASKS", environ.get("SLURM_NTASKS", "1"))
    if "SLURM_STEP_NODELIST" not in environ or int(count) < 2:
        return None
    if environ.get("SLURM_LOCALID", "0") != "0" and not environ.get("JAX_LOCAL_DEVICE_IDS"):
        raise ValueError(
            "Slurm started several tasks on one node; one process uses all of its devices: give "
            "--ntasks-per-node=1 (or JAX_LOCAL_DEVICE_IDS for each task)"
        )
    # "node[001-004,007],other" and "node001,node002" both begin with the first node.
    first = re.match(r"([^,\[]+)(?:\[(\d+))?", environ["SLURM_STEP_NODELIST"])
    if first is None:
        raise ValueError(f"SLURM_STEP_NODELIST={environ['SLURM_STEP_NODELIST']!r} names no node")
    port = SLURM_PORTS[0] + int(environ["SLURM_JOB_ID"]) % SLURM_PORTS[1]
    return {
        "coordinator_address": f"{first[1]}{first[2] or ''}:{port}",
        "num_processes": int(count),
        "process_id": int(environ["SLURM_PROCID"]),
        "cluster_detection_method": "deactivate",
    }


def has_tpu(environ: Mapping[str, str]) -> bool:
    """Whether this host has TPU chips that JAX is going to use."""
    wanted = environ.get("JAX_PLATFORMS", "tpu")
    devices = any(Path("/dev/vfio").glob("[0-9]*")) or Path("/dev/accel0").exists()
    return "tpu" in wanted and devices and importlib.util.find_spec("libtpu") is not None


# ---- What only one process does ---------------------------------------------------------------


def is_first() -> bool:
    """Whether this process writes the shared files."""
    return jax.process_index() == 0


def broadcast_from_first(answer: Answer) -> Answer:
    """Process 0's answer, in every process; all processes must call it."""
    if jax.process_count() == 1:
        return answer
    return type(answer)(multihost_utils.broadcast_one_to_all(np.array(answer)))


def unfinished_status(environ: Mapping[str, str] = os.environ) -> int:
    """The exit status of a run that was stopped before its end: PERSONGEN_UNFINISHED_STATUS.

    0 by default; launchers that restart runs (launch/) set another, to tell it from a finished run.
    """
    return int(environ.get("PERSONGEN_UNFINISHED_STATUS", 0))


def log_folder(workdir: Path) -> Path:
    """Where this process writes its logs: ``workdir``, or a folder per process inside it."""
    if is_first():
        return workdir
    folder = tempfile.TemporaryDirectory(prefix="persongen-jax-")
    atexit.register(folder.cleanup)
    return Path(folder.name)


@contextlib.contextmanager
def mute_other_processes() -> Iterator[None]:
    """Inside, only process 0 prints; warnings and errors of the others still get through."""
    if is_first():
        yield
        return
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield


# ---- Losing a process -------------------------------------------------------------


class Watch:
    """Ends this process when another one is lost, which it would otherwise wait for for ever.

    Every process increments a counter in the store of process 0; one whose counter stops for
    ``seconds`` is lost, and so at once is one that reports a failure. If process 0 is lost, so is
    the store, and JAX itself ends the others.
    """

    def __init__(self, seconds: float):
        from jax._src import distributed as jax_distributed  # JAX has no public way to its store

        self.seconds = seconds
        self._store: Any = jax_distributed.global_state.client
        self._heard = dict.fromkeys(range(jax.process_count()), ("", time.monotonic()))
        self._names = {}
        self._stop = threading.Event()
        self._say("0")
        self._thread = threading.Thread(target=self._work, name="watch", daemon=True)
        self._thread.start()

    def _say(self, word: str):
        value = f"{word} {socket.gethostname()}"
        self._store.key_value_set(f"{ALIVE}{jax.process_index()}", value, allow_overwrite=True)

    def _work(self):
        count, pause = 0, min(2.0, self.seconds / 10)
        while not self._stop.wait(pause):
            count += 1
            try:
                self._say(str(count))
                found = self._store.key_value_dir_get(ALIVE)
            except Exception as error:
                if not self._stop.is_set():
                    self._end(f"process 0 {self._at(0)}is lost ({str(error).splitlines()[0]})")
                return
            self._look(found, time.monotonic())

    def _look(self, found, now):
        for key, value in found:
            index, (word, name) = int(key.rsplit("/", 1)[1]), value.split(" ", 1)
            self._names[index] = name
            if word == FAILED:
                self._end(f"process {index} {self._at(index)}ended with an error, see its log")
            if word == ENDED or self._heard[index][0] != word:
                self._heard[index] = (word, now)
        for index, (_, heard) in self._heard.items():
            if now - heard > self.seconds and index != jax.process_index():
                self._end(
                    f"process {index} {self._at(index)}is lost: nothing was heard of it for "
                    f"{self.seconds} s"
                )

    def _at(self, index: int) -> str:
        return f"on {self._names[index]} " if index in self._names else ""

    def _end(self, what: str):
        text = f"error: of {jax.process_count()} processes, {what}; {REMEDY}\n"
        sys.stdout.flush()
        os.write(2, text.encode())  # the main thread may hold the lock of sys.stderr
        os._exit(1)

    def close(self, word: str = ENDED) -> None:
        """Tell the others that this process ended normally, or that it failed."""
        self._stop.set()
        self._thread.join()
        with contextlib.suppress(Exception):
            self._say(word)


@contextlib.contextmanager
def run_distributed() -> Iterator[None]:
    """Wraps the joint work of all processes: joins them, and lets only process 0 print.

    An error in one of them ends all at once. Otherwise it would wait for the others on exit, and
    they for it.
    """
    global _watch
    initialize()
    try:
        with mute_other_processes():
            yield
    except BaseException as error:
        if _watch is None:
            raise
        if isinstance(error, KNOWN):
            print(f"error: {error}", file=sys.stderr)
        else:
            traceback.print_exc()
        if isinstance(error, jax.errors.JaxRuntimeError) or STATUS.match(str(error)):
            # A collective failed. The watch may know who is lost, and then ends the process.
            time.sleep(_watch.seconds + 5)
        _watch.close(FAILED)
        sys.stderr.flush()
        os._exit(1)
    if _watch:
        _watch.close(ENDED)
        _watch = None
