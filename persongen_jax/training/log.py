"""What a run logs about itself: metrics.jsonl, TensorBoard events, speeds."""

import contextlib
import json
import logging
import math
import os
import socket
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import numpy as np
from jax.typing import ArrayLike

from data_pipeline.files import write_text
from data_pipeline.text_files import whole_lines
from persongen_jax.files import is_full

log = logging.getLogger(__name__)


class MetricsFile:
    """metrics.jsonl: one line per ``log_every`` steps, with the mean over them.

    "skipped" counts the steps whose loss or gradient was not finite; the other numbers are means
    over the remaining steps, null if there are none. Lines that hit a full disk are kept for later.

    Resuming drops the lines after the resumed step, because they are written again. ``kept`` are
    the steps before the resumed one that belong to the next line; a checkpoint holds them.
    """

    def __init__(self, path: Path, start: int, kept: Iterable[dict] = ()):
        rows = [line for line in _lines(path) if json.loads(line)["step"] <= start]
        write_text(path, "".join(rows))
        self.file = RetryingFile(path)
        self._kept = list(kept)

    def keep(self, metrics: dict) -> None:
        """Remember a step's metrics; they stay on the device, so that nothing waits for them."""
        self._kept.append(metrics)

    def kept(self) -> list[dict]:
        """A new list of the remembered steps as plain floats."""
        self._kept = [{k: float(v) for k, v in step.items()} for step in self._kept]
        return list(self._kept)

    def write(self, step: int, speeds: dict) -> dict:
        """Write the line of ``step`` and return it."""
        kept = self.kept()
        good = [step for step in kept if not step["skipped"]]
        means = {k: float(np.mean([m[k] for m in good])) if good else math.nan for k in kept[0]}
        first = {name: means.pop(name) for name in ("loss", "grad_norm")}
        means["skipped"] = len(kept) - len(good)
        row = {"step": step, **first, **means, **speeds}
        numbers = {k: v if math.isfinite(v) else None for k, v in row.items()}
        self.file.write((json.dumps(numbers) + "\n").encode())
        self.file.flush()
        self._kept = []
        return row

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_):
        self.file.close()


class RetryingFile:
    """An append-only file; data that hit a full disk are kept and written with the next ones."""

    def __init__(self, path: Path):
        self.path = path
        self._file = open(path, "ab", buffering=0)
        self._unwritten, self._full = b"", False

    def write(self, data: bytes) -> None:
        self._unwritten += data

    def flush(self) -> None:
        try:
            while self._unwritten:
                self._unwritten = self._unwritten[self._file.write(self._unwritten) :]
            self._full = False
        except OSError as error:
            if not is_full(error):
                raise
            if not self._full:
                log.warning(
                    "%s: no space left on the device; the missing part is written later", self.path
                )
            self._full = True

    def close(self) -> None:
        self.flush()
        self._file.close()
        if self._unwritten:
            log.warning("%s: the last %d bytes are lost", self.path, len(self._unwritten))


def _lines(path: Path) -> list[str]:
    """The complete lines; a crash may have cut the last one short."""
    return [line + "\n" for line in whole_lines(path)] if path.exists() else []


def loss_summary(path: Path) -> str:
    """The loss at the beginning and the end of a run, each the mean of a tenth of its lines."""
    losses = [json.loads(line)["loss"] for line in _lines(path)]
    losses = [loss for loss in losses if loss is not None]
    if not losses:
        return "loss: no steps were run"
    tenth = max(1, len(losses) // 10)
    return f"loss: {np.mean(losses[:tenth]):.4f} at first, {np.mean(losses[-tenth:]):.4f} at last"


class EventFile:
    """TensorBoard's event file, by the parts of tensorboardX; each event is written at once.

    Not by its SummaryWriter: that writes from a thread, which a full disk would end, and the
    training would then wait for it for ever.

    Args:
        folder: ``tensorboard --logdir`` reads it.
        start: the resumed step; TensorBoard drops the later steps that it has read.

    Raises:
        ImportError: tensorboardX is not installed.
    """

    def __init__(self, folder: Path, start: int = 0):
        try:
            from tensorboardX import RecordWriter, summary
            from tensorboardX.proto.event_pb2 import Event, SessionLog
            from tensorboardX.record_writer import register_writer_factory
        except ImportError as error:
            raise ImportError(
                "config.tensorboard needs tensorboardX: pip install 'persongen_jax[log]', or give "
                "--config.tensorboard=False; metrics.jsonl is written in any case"
            ) from error
        self._event, self._summary = Event, summary
        files = SimpleNamespace(open=lambda name: RetryingFile(Path(name.partition(":")[2])))
        register_writer_factory("patient", files)
        folder.mkdir(parents=True, exist_ok=True)
        earlier = any(folder.glob("events.out.tfevents.*"))
        # Whole seconds come first, because TensorBoard reads a folder's files in name order.
        name = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}"
        self._records = RecordWriter(f"patient:{folder / name}")
        self._write(file_version="brain.Event:2")
        if start or earlier:
            self._write(step=start + 1, session_log=SessionLog(status=SessionLog.START))

    def _write(self, **fields):
        self._records.write(self._event(wall_time=time.time(), **fields).SerializeToString())
        self._records.flush()

    def scalar(self, name: str, value: float, step: int) -> None:
        self._value(step, tag=name, simple_value=float(value))

    def scalars(self, group: str, row: dict, step: int) -> None:
        """A row of metrics.jsonl, each number as ``group/name``."""
        for name, value in row.items():
            if name != "step":
                self.scalar(f"{group}/{name}", value, step)

    def image(self, name: str, image: ArrayLike, step: int) -> None:
        """A picture, uint8 [h, w, 3]."""
        self._value(step, tag=name, image=self._summary.make_image(np.asarray(image)))

    def _value(self, step: int, **fields):
        value = self._summary.Summary.Value(**fields)
        self._write(step=step, summary=self._summary.Summary(value=[value]))

    def close(self) -> None:
        self._records.close()


class Stopwatch:
    """Steps per second and the time spent waiting for data, between two rows of the log."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        self._start, self._waited, self._steps = time.perf_counter(), 0.0, 0

    def next_batch(self, stream: Iterator[dict], running: Any = None) -> dict:
        """The next batch of ``stream``; the wait counts if the devices run out of work meanwhile.

        ``running`` is an array that is ready when the last step is done.
        """
        start = time.perf_counter()
        batch = next(stream)
        if running is None or running.is_ready():
            self._waited += time.perf_counter() - start
        self._steps += 1
        return batch

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Time spent inside does not count."""
        start = time.perf_counter()
        yield
        self._start += time.perf_counter() - start

    def read(self, batch_size: int, step_flops: float, peak: float) -> dict:
        """The speeds since the last call, as metrics.jsonl stores them; resets the clock.

        images_per_second; data_wait, a fraction of the time; mfu, the floating-point operations
        done as a fraction of what ``peak`` FLOP/s would have allowed.
        """
        seconds = max(time.perf_counter() - self._start, 1e-9)
        rate = self._steps / seconds
        speeds = {
            "images_per_second": rate * batch_size,
            "data_wait": self._waited / seconds,
            "mfu": rate * step_flops / peak,
        }
        self.restart()
        return speeds
