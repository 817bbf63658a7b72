"""The download: rows to pictures in a work folder, resumable at any moment.

    pictures = download(rows.rows, DownloadSettings(contact="me@example.org"), "work", rows.places)

A row that is done is not fetched again; rows that failed and may end otherwise next time are. Files
appear whole or not at all, and pictures.jsonl and dropped.jsonl are in the order of the rows,
whatever came first. So a run that was killed and started again, or had another number of threads,
writes the same bytes, but for the times of fetching.
"""

import contextlib
import datetime
import errno
import os
import shutil
import threading
import time
import traceback
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data_pipeline.collect.download.decoders import Closed, Decoders
from data_pipeline.collect.download.local import copy_local
from data_pipeline.collect.download.network.addresses import Resolver, read_target
from data_pipeline.collect.download.network.fetch import Body
from data_pipeline.collect.download.network.hosts import SILENCE, SILENT, Host, Hosts, Task
from data_pipeline.collect.download.network.robots import import_protego, read_robots
from data_pipeline.collect.download.outcomes import Failed, NotFetched, Refused
from data_pipeline.collect.download.results import is_there, remove_partial, withdraw, write_results
from data_pipeline.collect.download.state import State
from data_pipeline.collect.download_settings import DownloadSettings
from data_pipeline.collect.records import Picture, Row
from data_pipeline.collect.refused import REASON, Refusals, read_refused
from data_pipeline.collect.rows.place import Place

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
LEAVE = 2.0  # seconds that the threads have to end after a fault or Ctrl-C


class DownloadError(ValueError):
    """A download that cannot begin or go on; the message says what to do."""


def download(
    rows: Iterable[Row],
    settings: DownloadSettings,
    work: str | Path,
    places: Mapping[str, Place] | None = None,
    *,
    resolver: Resolver | None = None,
) -> Iterator[Picture]:
    """Fetch what is not there yet, write the work folder's files, and give all pictures.

    Args:
        rows: their order is that of the pictures.
        work: the folder; made if it is not there.
        places: where the pictures of rows lie that need no network, by the rows' keys.
        resolver: (host, port) -> IP addresses; by default the system's.

    Raises:
        DownloadError: rows of the network and no contact, or no space left.
        StateError: the folder's state cannot be read, or another download is at work there.
        OSError: the folder cannot be written to.
    """
    work, places = Path(work), dict(places or {})
    rows = list({row.key: row for row in rows}.values())
    refusals = read_refused(work, *filter(None, [settings.refusals]))
    try:
        work.mkdir(parents=True, exist_ok=True)
        with contextlib.closing(State(work)) as state:
            run = _Run(rows, settings, work, places, state, refusals, resolver)
            run.refuse()
            run.fetch(run.open_rows())
            return iter(write_results(work, rows, state.entries))
    except OSError as error:
        if error.errno in FULL:
            raise DownloadError(
                f"{work}: no space left; make room and run it again: what is done is kept"
            ) from error
        raise


class _Run:
    def __init__(
        self,
        rows: list[Row],
        settings: DownloadSettings,
        work: Path,
        places: dict[str, Place],
        state: State,
        refusals: Refusals,
        resolver: Resolver | None,
    ):
        self.rows, self.settings, self.work, self.places = rows, settings, work, places
        self.state, self.refusals = state, refusals
        self.hosts = Hosts(settings, resolver)
        self.partial = work / "partial"
        self.fault: BaseException | None = None
        self.counts: Counter[str] = Counter()  # of this run
        self.unanswered: list[tuple[Host, Row]] = []

    # ---- What is to be done ----------------------------------------------------------------------

    def refuse(self) -> None:
        """Refuse what the list of refusals names, and remove what of it was fetched before."""
        taken_back = []
        for row in self.rows:
            entry = self.state.entries.get(row.key, {})
            key = entry.get("picture", {}).get("key", "")
            why = self._refused(row, key)
            if why and not _is_refusal(entry):
                self.note(row, Refused(why))
                taken_back += [entry["picture"]] if key else []
        withdraw(self.work, taken_back, self.state.entries)

    def open_rows(self) -> list[int]:
        """The numbers of the rows that this run takes up."""
        return [number for number, row in enumerate(self.rows) if self._is_open(row)]

    def _is_open(self, row: Row) -> bool:
        entry = self.state.entries.get(row.key)
        if entry is None:
            return True
        if entry["state"] == "done":
            changed = row.sha256.lower() not in ("", entry["picture"]["key"])
            return changed or not is_there(self.work, entry["picture"])
        if _is_refusal(entry):
            return self.settings.retry_failed and not self._refused(row)
        return bool(entry.get("again")) or self.settings.retry_failed

    def _refused(self, row: Row, key: str = "") -> str:
        return self.refusals.of_picture(row.identity, row.url, row.sha256.lower(), key)

    # ---- The threads -----------------------------------------------------------------------------

    def fetch(self, numbers: list[int]) -> None:
        """Fetch these rows. The first fault of a thread that is not a row's ends the run."""
        settings = self.settings
        tasks = list(filter(None, map(self._task, numbers)))
        if any(task.target for task in tasks):
            import_protego()
            if not settings.contact:
                raise DownloadError(
                    "contact: the owners of the hosts need to know whom to write to; give your "
                    "mail address or a page"
                )
        remove_partial(self.work)  # of a run that was killed
        shutil.rmtree(self.partial, ignore_errors=True)
        self.partial.mkdir()
        self.decoders = Decoders(
            settings.decoders, settings.max_pixels, settings.quality, settings.decode_timeout
        )
        for task in tasks:
            self.hosts.add(task)
        count = min(settings.threads, len(tasks))
        threads = [threading.Thread(target=self._thread, daemon=True) for _ in range(count)]
        self.bar = tqdm(None, "downloading", len(tasks), unit="row", disable=None)
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        finally:
            self.hosts.stop()
            until = time.monotonic() + LEAVE
            for thread in threads:
                thread.join(max(0.0, until - time.monotonic()))
            self.bar.close()
            self.hosts.close()
            self.decoders.close()
            shutil.rmtree(self.partial, ignore_errors=True)
        if self.fault is not None:
            raise self.fault
        self._join_silent()

    def _join_silent(self) -> None:
        """All rows of a silent host end alike: which of them were asked first is chance."""
        for host, row in self.unanswered:
            if host.closed is not None and host.closed.reason == SILENT:
                self._write(row, host.closed, self.state.entries[row.key]["tries"])

    def _task(self, number: int) -> Task | None:
        """A row's task; None if its address is refused without asking anyone."""
        row = self.rows[number]
        if row.key in self.places:
            return Task(number, None)
        try:
            return Task(number, read_target(row.url, self.settings.allow))
        except NotFetched as failure:
            self.note(row, failure)
            return None

    def _thread(self) -> None:
        try:
            while self.fault is None and (taken := self.hosts.take()) is not None:
                self._take_up(*taken)
        except BaseException as error:
            self.fault = self.fault or error
            self.hosts.stop()

    def _take_up(self, host: Host, task: Task) -> None:
        """One request, or one picture; raises what is a fault of the folder, not of the row."""
        row = self.rows[task.number]
        partial = self.partial / row.key
        if host.closed is not None:
            self.hosts.finish(host)
            self._end(row, partial, host.closed, task.tries)
            return
        try:
            with _of_the_row():
                body = self._get(host, task, partial)
        except NotFetched as failure:
            task.tries += 1
            if not self.hosts.finish(host, failure, task):
                self._end(row, partial, failure, task.tries)
                if failure.reason in SILENCE:
                    self.unanswered.append((host, row))
            return
        if body is None:
            return
        self.hosts.finish(host)
        try:
            with _of_the_row():
                picture = self._keep(row, body, partial)
        except Closed:  # the run is stopped; the next one takes the row up again
            return
        except NotFetched as failure:
            self._end(row, partial, failure, task.tries + 1)
            return
        self.note(row, picture, task.tries + 1)
        self._end(row, partial)

    def _get(self, host: Host, task: Task, partial: Path) -> Body | None:
        """The body in ``partial``; None if the task was put back or sent elsewhere."""
        settings = self.settings
        if task.target is None:
            place = self.places[self.rows[task.number].key]
            return copy_local(place, partial, settings.max_bytes)
        if host.robots is None or host.robots.stale:
            fault = None
            try:
                with _of_the_row():
                    host.robots = read_robots(task.target, host.fetcher, settings, partial)
            except NotFetched as error:
                fault = error
            self.hosts.put_back(host, task, fault)
            return None
        host.robots.check(task.target)
        found = host.fetcher.fetch(task.target, partial)
        if isinstance(found, Body):
            return found
        if task.hops >= settings.max_redirects:
            raise Failed("redirects", task.hops + 1, settings.max_redirects)
        # Its own limits, robots.txt and addresses hold for the host that it leads to.
        self.hosts.add(Task(task.number, found, task.tries, task.hops + 1))
        self.hosts.finish(host)
        return None

    def _keep(self, row: Row, body: Body, partial: Path) -> dict[str, Any]:
        """Decode a file and give the picture its place; what the state says of it."""
        if row.sha256.lower() not in ("", body.sha256):
            raise Failed("sha256", body.sha256, row.sha256)
        if why := self._refused(row, body.sha256):
            raise Refused(why)
        stem = self.partial / f"{row.key}.new"
        made = self.decoders.decode(partial, stem)
        path = f"pictures/{body.sha256[:2]}/{body.sha256}{made.ending}"
        (self.work / path).parent.mkdir(parents=True, exist_ok=True)
        os.replace(f"{stem}{made.ending}", self.work / path)
        return {
            "key": body.sha256,
            "path": path,
            "width": made.width,
            "height": made.height,
            "bytes": made.bytes,
            "rotated": made.rotated,
        }

    def _end(
        self, row: Row, partial: Path, failure: NotFetched | None = None, tries: int = 0
    ) -> None:
        if failure is not None:
            self.note(row, failure, tries)
        partial.unlink(missing_ok=True)
        self.bar.set_postfix(self.counts, refresh=False)
        self.bar.update()

    # ---- The state -------------------------------------------------------------------------------

    def note(self, row: Row, outcome: NotFetched | dict[str, Any], tries: int = 0) -> None:
        """Write down what became of a row; ``tries`` of this run are added to earlier ones."""
        before = self.state.entries.get(row.key, {}).get("tries", 0)
        self._write(row, outcome, before + tries)
        self.counts[outcome.state if isinstance(outcome, NotFetched) else "done"] += 1

    def _write(self, row: Row, outcome: NotFetched | dict[str, Any], tries: int) -> None:
        values: dict[str, Any] = {"time": self.settings.fixed_time or _now(), "tries": tries}
        if isinstance(outcome, NotFetched):
            values |= {"reason": outcome.reason, "value": outcome.value}
            values |= {"threshold": outcome.threshold, "again": outcome.again}
            self.state.add(row.key, outcome.state, **values)
        else:
            self.state.add(row.key, "done", **values, picture=outcome)


def _is_refusal(entry: Mapping[str, Any]) -> bool:
    return entry.get("state") == "refused" and entry["reason"].startswith(REASON)


@contextlib.contextmanager
def _of_the_row() -> Iterator[None]:
    """Makes the row's failure of what nobody foresaw: one hostile answer must not end the run.

    An OSError is the work folder's: those of the network are failures already.
    """
    try:
        yield
    except (NotFetched, Closed, OSError):
        raise
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        said = f"{type(error).__name__} in {Path(place.filename).name} line {place.lineno}"
        raise Failed("unexpected", said) from error


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
