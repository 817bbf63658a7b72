"""What became of each row: ``state.jsonl``, to which lines are only added.

    {"row": "0123456789abcdef", "state": "done", "time": "2026-01-31T12:00:00Z", "tries": 1,
     "picture": {"key": …, "path": …, "width": …, "height": …, "bytes": …, "rotated": …}}
    {"row": …, "state": "failed", "time": …, "tries": 3, "reason": "status", "value": 503,
     "threshold": null, "again": true}
    {"row": …, "state": "refused", …, "reason": "robots.txt", "value": "/private/", …}

The last line of a row holds. A process that was killed may have left half a line at the end; it is
cut off. Names and addresses of people are not in it, only the keys of rows.
"""

import errno
import json
import os
import threading
from pathlib import Path
from typing import Any

from data_pipeline.collect.records import json_line

FILE = "state.jsonl"
STATES = ("done", "failed", "refused")


class StateError(ValueError):
    """A state that cannot be used; the message names the file and the remedy."""


class State:
    """The state of a work folder; one process at a time. Threads may share it."""

    def __init__(self, work: Path):
        self._path = work / FILE
        self._lock = threading.Lock()
        # Without a buffer, so that a line is in the file or not, whatever happens to the process.
        self._file = open(self._path, "ab", buffering=0)
        self._broken = False
        try:
            _only_one(self._file, work)
            self.entries = self._read()
        except BaseException:
            self._file.close()
            raise

    def add(self, row: str, state: str, **values: Any) -> None:
        """Note what became of a row. OSError if it cannot be written."""
        entry = {"row": row, "state": state, **values}
        line = json_line(entry).encode()
        with self._lock:
            if self._file.closed or self._broken:  # a thread that was not waited for
                return
            self._broken = True  # nothing may follow half a line
            if self._file.write(line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))
            self._broken = False
            self.entries[row] = entry

    def close(self) -> None:
        with self._lock:
            self._file.close()

    def _read(self) -> dict[str, dict[str, Any]]:
        raw = self._path.read_bytes()
        whole = raw.rfind(b"\n") + 1
        if whole < len(raw):
            self._file.truncate(whole)
        found = {}
        for number, line in enumerate(raw[:whole].split(b"\n"), 1):
            if not line:
                continue
            try:
                entry = json.loads(line)
                if entry["state"] not in STATES:
                    raise ValueError(f"state {entry['state']!r}")
                found[entry["row"]] = entry
            except (ValueError, KeyError, TypeError) as error:
                raise StateError(
                    f"{self._path} line {number}: not a line of ours ({error}); remove the line, "
                    "and its row is fetched again"
                ) from error
        return found


def _only_one(file, work: Path) -> None:
    """StateError if another process writes there."""
    try:
        import fcntl
    except ImportError:  # not on Windows
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise StateError(f"{work}: another download is at work in it; wait for it") from error
    except OSError:  # a file system without locks
        pass
