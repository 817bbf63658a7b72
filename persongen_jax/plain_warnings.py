"""Warnings for a command's user: one line, without the place in our code."""

import contextlib
import sys
import warnings


@contextlib.contextmanager
def plain_warnings():
    """Inside, every UserWarning prints ``warning: <text>`` to stderr, once per text."""
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


__all__ = ["plain_warnings"]
