"""An append-only file that outlives a full disk."""

import logging
from pathlib import Path

from persongen_jax.files import is_full

log = logging.getLogger(__name__)


class RetryingFile:
    """An append-only file; data that hit a full disk are kept and written with the next ones."""

    def __init__(self, path: Path):
        self.path = path
        self._file = open(path, "ab", buffering=0)
        self._unwritten, self._full = b"", False

    def write(self, data: bytes) -> None:
        self._unwritten += data

    def flush(self) -> None:
        try:
            while self._unwritten:
                self._unwritten = self._unwritten[self._file.write(self._unwritten) :]
            self._full = False
        except OSError as error:
            if not is_full(error):
                raise
            if not self._full:
                log.warning(
                    "%s: no space left on the device; the missing part is written later", self.path
                )
            self._full = True

    def close(self) -> None:
        self.flush()
        self._file.close()
        if self._unwritten:
            log.warning("%s: the last %d bytes are lost", self.path, len(self._unwritten))
