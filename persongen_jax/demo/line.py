"""The line of requests: one computes, a few wait, and further ones are refused."""

import threading
from collections.abc import Iterator


class Line:
    """Requests in the order in which they came.

    Args:
        most: that may wait.
    """

    def __init__(self, most: int):
        self._most, self._line = most, list[object]()
        self._changed = threading.Condition()

    def enter(self) -> object:
        """The ticket of a new request; ``leave`` gives it back.

        Raises:
            ValueError: as many wait as may.
        """
        with self._changed:
            if len(self._line) > self._most:
                waiting = f"{self._most} wait already" if self._most else "somebody's is computed"
                raise ValueError(f"the page is busy, {waiting}: try again a little later")
            self._line.append(ticket := object())
        return ticket

    def wait(self, ticket: object, end: threading.Event) -> Iterator[int]:
        """How many are before it, now and with each change, until nobody is or ``end`` is set."""
        told = 0
        while not end.is_set():
            with self._changed:
                before = self._line.index(ticket)
                if before == told:
                    self._changed.wait(0.2)  # to see whether it has ended meanwhile
                    before = self._line.index(ticket)
            if not before:
                return
            if before != told:
                told = before
                yield before

    def leave(self, ticket: object) -> None:
        """It is done, or nobody waits for it any more."""
        with self._changed:
            self._line.remove(ticket)
            self._changed.notify_all()
