"""Processes that decode: one that dies or hangs costs its picture and is replaced."""

import multiprocessing
import queue
import signal
from pathlib import Path
from typing import Any

from data_pipeline.collect.download.content import HEAD, Decoded, decode, picture_kind
from data_pipeline.collect.download.outcomes import Failed

STOP = 5.0  # seconds that a process has to end by itself


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
        """
        with open(source, "rb") as file:
            picture_kind(file.read(HEAD))  # many failures are pages, which need no process
        decoder = self._free.get()
        try:
            return decoder.decode(source, stem)
        finally:
            self._free.put(decoder)

    def close(self) -> None:
        """End the processes."""
        for decoder in self._all:
            decoder.close()


class _Decoder:
    def __init__(self, max_pixels: int, quality: int, timeout: float):
        self._limits, self._timeout = (max_pixels, quality), timeout
        self._process: Any = None
        self._pipe: Any = None

    def decode(self, source: Path, stem: Path) -> Decoded:
        if self._process is None:
            self._start()
        try:
            self._pipe.send((str(source), str(stem)))
            answered = self._pipe.poll(self._timeout)
            answer: tuple[str, Any] = self._pipe.recv() if answered else ("late", None)
        except (EOFError, OSError):
            self._process.join(STOP)
            code = self._process.exitcode
            self._kill()
            raise Failed("decoder", _ending(code)) from None
        kind, values = answer
        if kind == "late":
            self._kill()
            raise Failed("decoder", "no answer", self._timeout)
        if kind == "failed":
            raise Failed(*values)
        if kind == "error":
            raise OSError(*values)
        return values

    def close(self) -> None:
        if self._process is not None:
            self._pipe.close()  # at the end of its pipe it ends
            self._process.join(STOP)
            self._kill()

    def _start(self) -> None:
        # Forking a process with threads may leave it with a lock that nobody opens.
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, *self._limits), daemon=True)
        self._process.start()
        theirs.close()

    def _kill(self) -> None:
        self._process.kill()
        self._process.join()
        self._pipe.close()
        self._process = None


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
