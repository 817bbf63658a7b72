"""Processes that decode: one that dies or hangs costs its picture and is replaced."""

import contextlib
import multiprocessing
import queue
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_pipeline.collect.download.content import HEAD, Decoded, decode, picture_kind
from data_pipeline.collect.download.outcomes import Failed

STOP = 5.0  # seconds that a process has to end by itself


class Closed(Exception):
    """The processes were ended before there was an answer, which says nothing of the picture."""


class Decoders:
    """A fixed number of decoding processes, used by any number of threads."""

    def __init__(self, count: int, max_pixels: int, quality: int, timeout: float):
        # The last one that was used first: another is only started where it is needed.
        self._free: queue.LifoQueue[_Decoder] = queue.LifoQueue()
        self._all = [_Decoder(max_pixels, quality, timeout) for _ in range(count)]
        for decoder in self._all:
            self._free.put(decoder)

    def decode(self, source: Path, stem: Path) -> Decoded:
        """content.decode in one of the processes, when one is free.

        Raises:
            Failed: as content.decode, or the process died or took too long.
            OSError: the picture cannot be written.
            Closed: after ``close``, or while it was waiting.
        """
        with open(source, "rb") as file:
            picture_kind(file.read(HEAD))  # many failures are pages, which need no process
        decoder = self._free.get()
        try:
            return decoder.decode(source, stem)
        finally:
            self._free.put(decoder)

    def close(self) -> None:
        """End the processes, also those at work; none starts after this."""
        for decoder in self._all:
            decoder.close()


class _Decoder:
    def __init__(self, max_pixels: int, quality: int, timeout: float):
        self._limits, self._timeout = (max_pixels, quality), timeout
        self._process: Any = None
        self._pipe: Any = None
        self._lock = threading.Lock()
        self._busy = self._closed = False

    def decode(self, source: Path, stem: Path) -> Decoded:
        process, pipe = self._begin()
        try:
            return self._ask(process, pipe, source, stem)
        finally:
            with self._lock:
                self._busy = False

    def _ask(self, process: Any, pipe: Any, source: Path, stem: Path) -> Decoded:
        try:
            pipe.send((str(source), str(stem)))
            answered = pipe.poll(self._timeout)
            answer: tuple[str, Any] = pipe.recv() if answered else ("late", None)
        except (EOFError, OSError):
            process.join(STOP)
            self._kill()
            raise self._fault(_ending(process.exitcode)) from None
        kind, values = answer
        if kind == "late":
            self._kill()
            raise self._fault("no answer", self._timeout)
        if kind == "failed":
            raise Failed(*values)
        if kind == "error":
            raise OSError(*values)
        return values

    def close(self) -> None:
        with self._lock:
            self._closed = True
            if self._process is None:
                return
            if self._busy:  # the thread that waits for it sees its end, and closes its pipe
                self._process.kill()
                self._process.join()
                return
            self._pipe.close()  # at the end of its pipe it ends
            self._process.join(STOP)
        self._kill()

    def _begin(self) -> tuple[Any, Any]:
        """The process and its pipe, started if there is none."""
        with self._lock:
            if self._closed:
                raise Closed
            self._busy = True
            if self._process is None:
                # Forking a process with threads may leave it with a lock that nobody opens.
                context = multiprocessing.get_context("spawn")
                pipe, theirs = context.Pipe()
                process = context.Process(target=_serve, args=(theirs, *self._limits), daemon=True)
                with _without_interrupts():
                    process.start()
                theirs.close()
                self._process, self._pipe = process, pipe
            return self._process, self._pipe

    def _fault(self, value: str, threshold: float | None = None) -> Exception:
        return Closed() if self._closed else Failed("decoder", value, threshold)

    def _kill(self) -> None:
        with self._lock:
            process, self._process = self._process, None
            if process is not None:
                process.kill()
                process.join()
                self._pipe.close()


@contextlib.contextmanager
def _without_interrupts() -> Iterator[None]:
    """A process that starts in here never sees Ctrl-C, not even while it imports: it would die, and
    its picture would be blamed."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _ending(code: int | None) -> str:
    if code is not None and code < 0:
        return f"ended by {signal.Signals(-code).name}"
    return f"ended with status {code}"


def _serve(pipe, max_pixels: int, quality: int) -> None:
    """The process: decodes until its pipe ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends this one
    while True:
        try:
            source, stem = pipe.recv()
        except (EOFError, OSError):
            return
        answer: tuple[str, Any]
        try:
            answer = ("done", decode(source, stem, max_pixels, quality))
        except Failed as failure:
            answer = ("failed", (failure.reason, failure.value, failure.threshold))
        except OSError as error:
            answer = ("error", (error.errno, error.strerror))
        try:
            pipe.send(answer)
        except OSError:  # whoever asked has been killed
            return
