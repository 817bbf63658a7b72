"""Ends a run cleanly on SIGTERM or a single Ctrl-C."""

import signal
import threading
from typing import Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec


class Stopped(Exception):
    """``should_stop`` returned True in the middle of work, whose result is discarded."""


class StopSignals:
    """Inside the ``with``, SIGTERM and SIGINT only set ``requested``.

    A second SIGINT interrupts as usual. Outside the main thread, where Python delivers no signals,
    nothing changes.

    With several processes, a signal to one of them has to stop all of them between the same two
    steps: :meth:`sync` agrees on it, and ``bool`` of the object is its last answer.
    """

    def __init__(self) -> None:
        self.requested = False
        self._before = {}
        self._agreed, self._question = False, None
        if jax.process_count() > 1:
            mesh = Mesh(np.array(jax.devices()), ("all",))
            self._each = NamedSharding(mesh, PartitionSpec("all"))
            self._any = jax.jit(jnp.any, out_shardings=NamedSharding(mesh, PartitionSpec()))

    def __bool__(self) -> bool:
        return self.requested if jax.process_count() == 1 else self._agreed

    def sync(self) -> bool:
        """Whether any process received a signal; all must call it and get the same answer.

        With several processes the answer is to the previous call, which the devices have computed
        meanwhile, so that nothing waits for it. A stop therefore takes effect one call later.
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

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_):
        for number, handler in self._before.items():
            signal.signal(number, handler)
