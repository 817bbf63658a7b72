"""What all commands share: errors and warnings are one line each on stderr."""

import contextlib
import functools
import logging
import sys
import warnings
from collections.abc import Callable, Iterator

# What the user's files, settings or machine cause; anything else is our fault and keeps its trace.
KNOWN = (ValueError, OSError, ImportError)

log = logging.getLogger(__name__)


def command(main: Callable) -> Callable:
    """Decorates a command's ``main``: a known error ends it with ``error: <text>`` and status 1.

    Faulty usage ends with argparse's message and status 2.
    """

    @functools.wraps(main)
    def in_lines(*args, **kwargs):
        try:
            with plain_warnings():
                return main(*args, **kwargs)
        except KNOWN as error:
            log.debug("", exc_info=True)
            sys.exit(f"error: {error}")

    return in_lines


@contextlib.contextmanager
def plain_warnings() -> Iterator[None]:
    """Inside, every UserWarning is a line ``warning: <text>`` on stderr, once for each text."""
    with warnings.catch_warnings():
        others, told = warnings.showwarning, set()

        def show(message, category, *place, **more):
            if not issubclass(category, UserWarning):
                others(message, category, *place, **more)
            elif str(message) not in told:
                told.add(str(message))
                print(f"warning: {message}", file=sys.stderr)

        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = show
        yield


__all__ = ["KNOWN", "command", "plain_warnings"]
