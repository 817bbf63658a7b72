"""Prefetches batches in a thread and puts them on the devices while a step runs."""

import atexit
import queue
import threading
from collections.abc import Callable, Generator, Iterator


def prefetch_to_device(iterator: Iterator, put: Callable, depth: int = 2) -> Generator:
    """Yields ``put(item)`` for each item, with up to ``depth`` of them prefetched by a thread.

    An exception in the thread is raised here, after the items before it. Calling ``close()`` on the
    result, or dropping it, ends the thread.
    """
    ready = queue.Queue(maxsize=depth)
    stop = threading.Event()

    def hand_over(kind, value) -> bool:
        while not stop.is_set():
            try:
                ready.put((kind, value), timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def work():
        try:
            for item in iterator:
                if not hand_over("item", put(item)):
                    return
            hand_over("end", None)
        except BaseException as error:  # pass any exception on to the consumer
            hand_over("error", error)

    thread = threading.Thread(target=work, name="prefetch_to_device", daemon=True)
    thread.start()

    def shut_down():
        stop.set()
        thread.join(timeout=10)

    atexit.register(shut_down)  # a running thread would block the interpreter's exit
    try:
        while True:
            kind, value = ready.get()
            if kind == "end":
                return
            if kind == "error":
                raise value
            yield value
    finally:
        atexit.unregister(shut_down)
        shut_down()
