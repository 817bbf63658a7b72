"""Warnings as a command's user reads them: one line, without the place in our code."""

import contextlib
import warnings


@contextlib.contextmanager
def plain_warnings():
    """Inside, a UserWarning is written as ``warning: <text>``."""
    before = warnings.formatwarning

    def line(message, category, *place, **more):
        if issubclass(category, UserWarning):
            return f"warning: {message}\n"
        return before(message, category, *place, **more)

    warnings.formatwarning = line
    try:
        yield
    finally:
        warnings.formatwarning = before
