"""Worker processes that may die: a decoder that crashes costs its picture and nothing else, and so
does an error in a picture. OSError is none of a picture: it ends the run.

Started by spawn, because a fork of a process with threads may hang.
"""

import multiprocessing
import pickle
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any

from tqdm import tqdm

DIED, LATE, RAISED = "the process that decoded it died", "not decoded within", "an error: "
PROCESS_FAULTS = (DIED, LATE, RAISED)  # how reasons begin that may not be the picture's
START = 300.0  # seconds until a process has imported what it needs


class Worker:
    """A process that applies a function to lists, one after another."""

    def __init__(self, function: Callable[[list[Any]], list[Any]]):
        self.function = function
        self.task: list[int] = []  # numbers of the items that it works on
        self.until = 0.0
        self._start()

    def _start(self) -> None:
        spawn = multiprocessing.get_context("spawn")
        self.pipe, theirs = spawn.Pipe()
        self._process = spawn.Process(target=_serve, args=(theirs, self.function), daemon=True)
        self._process.start()
        theirs.close()  # else its death would not be seen
        self._ready = False

    def send(self, task: list[int], items: list[Any], timeout: float) -> None:
        """Give it the items whose numbers are ``task``; it may take ``timeout`` seconds."""
        self.task, self._timeout = task, timeout
        self.until = time.monotonic() + (timeout if self._ready else START)
        try:
            self.pipe.send(items)
        except OSError:  # it died while it waited; ``receive`` tells
            pass

    def receive(self) -> tuple[list[Any] | None, str]:
        """(results, ""); (None, "") of a process that has just started; if it died or the function
        raised, (None, why), after which it, or another one, is there.

        Raises:
            OSError: it died before it could begin, or the function raised one.
        """
        try:
            kind, value = self.pipe.recv()
        except (EOFError, OSError):
            if not self._ready:  # which would happen to every picture
                raise OSError(
                    f"a worker process cannot start{self._how()}; its own message says why, and "
                    "workers=0 works without them"
                ) from None
            return None, self._replaced(f"{DIED}{self._how()}")
        if kind == "ready":
            self._ready, self.until = True, time.monotonic() + self._timeout
            return None, ""
        if kind == "error" and isinstance(value, OSError):
            raise value
        return (None, _said(value)) if kind == "error" else (value, "")

    def expire(self, timeout: float) -> str:
        """End a process that takes too long; returns the reason."""
        self._process.kill()
        return self._replaced(f"{LATE} {timeout:g} s")

    def close(self) -> None:
        self._process.kill()
        self._process.join()
        self.pipe.close()

    def _how(self) -> str:
        self._process.join(5)
        code = self._process.exitcode
        if code is not None and code < 0:
            return f" ({signal.Signals(-code).name})"
        return f" (status {code})"

    def _replaced(self, why: str) -> str:
        self.close()
        self._start()
        return why


def _serve(pipe: Connection, function: Callable[[list[Any]], list[Any]]) -> None:
    """The loop of a worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends it
    pipe.send(("ready", None))
    while True:
        try:
            items = pipe.recv()
        except EOFError:
            return
        try:
            answer: tuple[str, Any] = "done", function(items)
        except Exception as error:
            answer = "error", _sendable(error)
        pipe.send(answer)


def _sendable(error: Exception) -> Exception:
    try:
        pickle.loads(pickle.dumps(error))
        return error
    except Exception:  # an exception with a constructor of its own
        return RuntimeError(f"{type(error).__name__}: {error}")


def _said(error: Exception) -> str:
    text = str(error).partition("\n")[0]
    return f"{RAISED}{type(error).__name__}: {text}"


def run(
    function: Callable[[list[Any]], list[Any]],
    items: Sequence[Any],
    failed: Callable[[Any, str], Any],
    *,
    workers: int,
    size: int,
    timeout: float,
) -> Iterator[Any]:
    """``function`` of all items, ``size`` at once, in their order.

    Args:
        failed: the result of an item whose process died, took too long or raised, and why.
        workers: processes; 0 works in this one, which a crash then ends.
        timeout: seconds for one item.

    Raises:
        OSError: what the function raised in whatever process, or none can start.
    """
    tasks = [list(range(i, min(i + size, len(items)))) for i in range(0, len(items), size)]
    if workers < 1:
        for task in tasks:
            yield from _here(function, [items[n] for n in task], failed)
        return
    waiting, results, following = deque(tasks), {}, 0
    pool = [Worker(function) for _ in range(min(workers, len(tasks)))]
    try:
        while following < len(items):
            for worker in pool:
                if not worker.task and waiting:
                    task = waiting.popleft()
                    worker.send(task, [items[n] for n in task], timeout * len(task))
            _collect(pool, waiting, results, items, failed, timeout)
            while following in results:
                yield results.pop(following)
                following += 1
    finally:
        for worker in pool:
            worker.close()


def _here(function, items: list[Any], failed: Callable[[Any, str], Any]) -> list[Any]:
    try:
        return function(items)
    except OSError:
        raise
    except Exception as error:
        if len(items) > 1:  # which of them it was shows when each is alone
            return [found for item in items for found in _here(function, [item], failed)]
        return [_failed(function, items[0], failed, _said(error))]


def _failed(function, item: Any, failed: Callable[[Any, str], Any], why: str) -> Any:
    """The result of an item that failed, which is told."""
    named = getattr(function, "named", str)
    tqdm.write(f"{named(item)}: {why}", file=sys.stderr)
    return failed(item, why)


def ask(
    worker: Worker, items: Sequence[Any], failed: Callable[[Any, str], Any], timeout: float
) -> list[Any]:
    """The same with one process that is kept, for executors that have their own."""
    waiting, results = deque([list(range(len(items)))]), {}
    while len(results) < len(items):
        if not worker.task:
            task = waiting.popleft()
            worker.send(task, [items[n] for n in task], timeout * len(task))
        _collect([worker], waiting, results, items, failed, timeout)
    return [results[n] for n in range(len(items))]


def _collect(pool, waiting, results, items, failed, timeout) -> None:
    """Waits until one of the pool has answered, died or taken too long."""
    busy = {worker.pipe: worker for worker in pool if worker.task}
    left = min(worker.until for worker in busy.values()) - time.monotonic()
    ready: Any = wait(list(busy), max(left, 0))
    found = [(worker, *worker.receive()) for worker in (busy[pipe] for pipe in ready)]
    late = [w for w in busy.values() if w.pipe not in ready and time.monotonic() > w.until]
    if not ready:
        found += [(worker, None, worker.expire(timeout)) for worker in late]
    for worker, values, why in found:
        if values is None and not why:
            continue
        task, worker.task = worker.task, []
        if values is not None:
            results |= dict(zip(task, values, strict=True))
        elif len(task) > 1:  # which of them it was shows when each is alone
            waiting.extendleft([n] for n in reversed(task))
        else:
            results[task[0]] = _failed(worker.function, items[task[0]], failed, why)
