"""TensorBoard's event files."""

import os
import socket
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from jax.typing import ArrayLike

from persongen_jax.training.logs.retrying_file import RetryingFile


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
