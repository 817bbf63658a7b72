"""Who is asked next: the hosts take turns, and none is asked too often or by too many at once."""

import heapq
import itertools
import random
import threading
import time
from collections import deque
from dataclasses import dataclass

from data_pipeline.collect.download.network.addresses import Resolver, Target
from data_pipeline.collect.download.network.fetch import Fetcher
from data_pipeline.collect.download.network.robots import Robots
from data_pipeline.collect.download.outcomes import Failed, NotFetched
from data_pipeline.collect.download_settings import DownloadSettings

SILENCE, SILENT = ("dns", "connection", "timeout"), "host is silent"
BUSY = (429, 503)  # of the host, not of the row


@dataclass
class Task:
    """A row to fetch: its number, where it is now, and how it went so far.

    ``target`` None: its picture is here already. ``tries`` are those that failed.
    """

    number: int
    target: Target | None
    tries: int = 0
    hops: int = 0


class Name:
    """A host's name, which limits belong to: http, https and all ports are one machine's load."""

    def __init__(self) -> None:
        self.origins: list[Host] = []
        self.active = 0
        self.ready = 0.0  # when the next request may begin, by the monotonic clock


class Host:
    """One origin: its tasks, and what is known of it."""

    def __init__(self, origin: str, fetcher: Fetcher, name: Name):
        self.origin, self.fetcher, self.name = origin, fetcher, name
        name.origins.append(self)
        self.tasks: deque[Task] = deque()
        self.robots: Robots | None = None
        self.robots_tries = 0
        self.closed: NotFetched | None = None  # why it is not asked any more in this run
        self.active = 0
        self.offered = False
        self.failures = 0  # in a row


class Hosts:
    """Hands out tasks to threads. All methods may be called from any of them."""

    def __init__(self, settings: DownloadSettings, resolver: Resolver | None = None):
        self._settings, self._resolver = settings, resolver
        self._hosts: dict[str, Host] = {}
        self._names: dict[str, Name] = {}
        self._offers: list[tuple[float, int, Host]] = []
        self._later: list[tuple[float, int, Task]] = []
        self._count = itertools.count()
        self._changed = threading.Condition()
        self._active = 0
        self._stopped = False

    def add(self, task: Task) -> None:
        """A task for the host of its target."""
        with self._changed:
            self._add(task)
            self._changed.notify()

    def take(self) -> tuple[Host, Task] | None:
        """The next task, when its host may be asked; None when there is nothing left to do."""
        with self._changed:
            while not self._stopped:
                now = time.monotonic()
                while self._later and self._later[0][0] <= now:
                    self._add(heapq.heappop(self._later)[2])
                if self._offers and self._offers[0][0] <= now:
                    host = heapq.heappop(self._offers)[2]
                    host.offered = False
                    # It asked to wait meanwhile, or another of its ports was asked.
                    if not host.closed and (host.name.ready > now or self._is_full(host)):
                        self._offer(host)
                        continue
                    return host, self._begin(host, now)
                if not (self._offers or self._later or self._active):
                    break
                due = [queue[0][0] for queue in (self._offers, self._later) if queue]
                self._changed.wait(min(due) - now if due else None)
            self._changed.notify_all()
            return None

    def finish(
        self, host: Host, failure: NotFetched | None = None, task: Task | None = None
    ) -> bool:
        """The request of a task is over. True if the task will be tried again.

        Args:
            failure: what went wrong. task: to be tried again if that can help; its ``tries`` count
                this one.
        """
        with self._changed:
            now = time.monotonic()
            self._end(host)
            again = isinstance(failure, Failed) and self._note(host, failure, task, now)
            if not isinstance(failure, Failed):
                host.failures = 0
            if not host.tasks and not host.active:
                host.fetcher.close()
            self._offer_all(host)
            self._changed.notify_all()
            return again

    def put_back(self, host: Host, task: Task, fault: NotFetched | None = None) -> None:
        """The task has not begun after all: robots.txt was asked for in its place.

        Args:
            fault: why that could not be read. It is tried again like a row.
        """
        with self._changed:
            self._end(host)
            host.tasks.appendleft(task)
            if fault is not None:
                host.robots_tries += 1
                pause = self._pause(host.robots_tries) if fault.wait is None else fault.wait
                last = host.robots_tries >= self._settings.tries
                if last or not fault.again or pause > self._settings.max_wait:
                    # A new one: the exception holds on to all that it passed through.
                    values = (fault.reason, fault.value, fault.threshold, fault.again)
                    host.closed = type(fault)(*values)
                else:
                    host.name.ready = max(host.name.ready, time.monotonic() + pause)
            self._offer_all(host)
            self._changed.notify_all()

    def stop(self) -> None:
        """Hand out nothing more."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def close(self) -> None:
        """Close all connections."""
        for host in self._hosts.values():
            host.fetcher.close()

    def _add(self, task: Task) -> None:
        origin = task.target.origin if task.target else ""
        if origin not in self._hosts:
            name = self._names.setdefault(task.target.host if task.target else "", Name())
            self._hosts[origin] = Host(origin, Fetcher(self._settings, self._resolver), name)
        self._hosts[origin].tasks.append(task)
        self._offer(self._hosts[origin])

    def _offer(self, host: Host) -> None:
        """Put a host into the queue, if it has a task and may be asked by one more."""
        if host.offered or not host.tasks or host.active >= self._most(host):
            return
        if not host.closed and self._is_full(host):  # ``_offer_all`` comes back to it
            return
        host.offered = True
        ready = 0.0 if host.closed else host.name.ready
        heapq.heappush(self._offers, (ready, next(self._count), host))

    def _offer_all(self, host: Host) -> None:
        """Offer all origins of a host's name, of which one has become free."""
        for other in host.name.origins:
            self._offer(other)

    def _is_full(self, host: Host) -> bool:
        """Whether a host is asked by as many as it may be, at all its ports together."""
        return bool(host.origin) and host.name.active >= self._settings.per_host

    def _end(self, host: Host) -> None:
        host.active -= 1
        host.name.active -= 1
        self._active -= 1

    def _most(self, host: Host) -> int:
        if not host.origin:
            return self._settings.threads
        # The first one reads robots.txt; the others wait for it.
        known = host.robots is not None and not host.robots.stale
        return self._settings.per_host if known or host.closed else 1

    def _begin(self, host: Host, now: float) -> Task:
        task = host.tasks.popleft()
        host.active += 1
        host.name.active += 1
        self._active += 1
        if host.origin and not host.closed:  # a row of a closed one is not asked for
            own = host.robots.interval if host.robots else 0.0
            host.name.ready = now + max(self._settings.interval, own)
        self._offer(host)
        self._changed.notify()
        return task

    def _note(self, host: Host, failure: Failed, task: Task | None, now: float) -> bool:
        """What a failure says of the host; whether its task comes again."""
        settings = self._settings
        silent = failure.reason in SILENCE
        host.failures = host.failures + 1 if silent else 0
        if host.failures >= settings.silent_after and not host.closed:
            host.closed = Failed(SILENT, failure.reason, settings.silent_after, again=True)
        wait = failure.wait
        if failure.again and wait is not None and wait > settings.max_wait:
            host.closed = Failed("host waits", wait, settings.max_wait, again=True)
        if task is None or not failure.again or task.tries >= settings.tries or host.closed:
            return False
        pause = self._pause(task.tries)
        if wait is not None or (failure.reason == "status" and failure.value in BUSY):
            host.name.ready = max(host.name.ready, now + (pause if wait is None else wait))
            self._add(task)
        else:
            heapq.heappush(self._later, (now + pause, next(self._count), task))
        return True

    def _pause(self, tries: int) -> float:
        """Seconds after so many failed tries; chance keeps rows from coming back all at once."""
        longest = self._settings.backoff * 2 ** (tries - 1) * random.uniform(1, 1.5)
        return min(longest, self._settings.max_wait)
