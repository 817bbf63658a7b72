"""Ending a run in good order when it is told to: SIGTERM, or Ctrl-C once."""

import signal
import threading

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec


class Stopped(Exception):
    """``should_stop`` said so in the middle of something, of which nothing is kept."""


class StopSignals:
    """Inside the ``with``, SIGTERM and SIGINT only set ``requested``.

    A second SIGINT interrupts as usual. Outside of the main thread, where Python hands out no
    signals, nothing is changed.

    With several processes a signal to one of them has to stop all, between the same two steps:
    :meth:`ask` says so, and the truth of the object is its last answer.
    """

    def __init__(self):
        self.requested = False
        self._before = {}
        self._agreed, self._question = False, None
        if jax.process_count() > 1:
            mesh = Mesh(np.array(jax.devices()), ("all",))
            self._each = NamedSharding(mesh, PartitionSpec("all"))
            self._any = jax.jit(jnp.any, out_shardings=NamedSharding(mesh, PartitionSpec()))

    def __bool__(self):
        return self.requested if jax.process_count() == 1 else self._agreed

    def ask(self) -> bool:
        """Whether any process was told to stop; the same answer in all, who all have to ask.

        With several processes the answer is to the question before, which the devices have worked
        out meanwhile: nothing waits for it. So a stop is heard one call later.
        """
        if jax.process_count() > 1:
            if self._question is not None:
                self._agreed = self._agreed or bool(self._question.addressable_data(0))
            flags = np.full(jax.local_device_count(), self.requested)
            flags = jax.make_array_from_process_local_data(self._each, flags)
            self._question = self._any(flags)
        return bool(self)

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
