"""A disk or a quota that is full: told from other errors, and outlived where it does no harm."""

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
def unless_full(path: str | os.PathLike) -> Iterator[None]:
    """What is written inside may find the disk full: a warning says so, and nothing is raised."""
    try:
        yield
    except OSError as error:
        if not is_full(error):
            raise
        log.warning("%s: no space left on the device; going on without it", path)
