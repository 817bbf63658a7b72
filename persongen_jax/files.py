"""Detects a full disk or quota, and survives it where that does no harm."""

import contextlib
import errno
import logging
import os
from collections.abc import Iterator

log = logging.getLogger(__name__)


def is_full(error: Exception) -> bool:
    """Whether an error says that a disk or a quota is full."""
    full = (errno.ENOSPC, errno.EDQUOT)
    text = str(error)
    return getattr(error, "errno", None) in full or any(os.strerror(n) in text for n in full)


@contextlib.contextmanager
def warn_if_full(path: str | os.PathLike) -> Iterator[None]:
    """Writing inside may hit a full disk: that logs a warning and does not raise."""
    try:
        yield
    except OSError as error:
        if not is_full(error):
            raise
        log.warning("%s: no space left on the device; continuing without it", path)
