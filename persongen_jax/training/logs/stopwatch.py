"""How fast a run trains."""

import contextlib
import time
from collections.abc import Iterator
from typing import Any


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
