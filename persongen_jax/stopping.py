"""Ending a run in good order when it is told to: SIGTERM, or Ctrl-C once."""

import signal
import threading


class StopSignals:
    """Inside the ``with``, SIGTERM and SIGINT only set ``requested``.

    A second SIGINT interrupts as usual. Outside of the main thread, where Python hands out no
    signals, nothing is changed.
    """

    def __init__(self):
        self.requested = False
        self._before = {}

    def __bool__(self):
        return self.requested

    def _handle(self, number, _frame):
        self.requested = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_):
        for number, handler in self._before.items():
            signal.signal(number, handler)
