"""Further judges of pictures as plug-ins: nudity, age, or whatever a user has a network for.

A plug-in is a function of (image uint8 RGB [h, w, 3], faces) to a number, named
"package.module:NAME". It says how wrong it is by its attribute ``error``, one line that the report
prints: a filter whose error nobody knows is not used in silence. ``licence`` is printed too.
"""

import functools
import importlib
from collections.abc import Callable, Sequence
from typing import Any


class ScoreError(ValueError):
    """A plug-in that cannot be used; the message names it and the remedy."""


@functools.cache
def open_score(name: str) -> Callable[..., float]:
    """The plug-in "package.module:NAME".

    Raises:
        ScoreError: there is none, or it does not say its error.
    """
    found = import_named(name)
    if not callable(found):
        raise ScoreError(f"measure.scores {name}: not a function")
    if not getattr(found, "error", ""):
        raise ScoreError(
            f"measure.scores {name}: it does not say how wrong it is; give it an attribute "
            "`error`, one line"
        )
    return found


def terms(names: Sequence[str]) -> list[str]:
    """A line for each plug-in: its error and its licence."""
    lines = []
    for name in names:
        score: Any = open_score(name)
        licence = getattr(score, "licence", "")
        lines.append(f"{score_name(name)}: {score.error}" + (f"; {licence}" if licence else ""))
    return lines


def score_name(name: str) -> str:
    """What a plug-in's score is called: the part after the colon."""
    return name.partition(":")[2]


def import_named(name: str) -> Any:
    """The object that "package.module:NAME" names.

    Raises:
        ScoreError: no such module, or no such name in it.
    """
    module, colon, attribute = name.partition(":")
    if not colon:
        raise ScoreError(f"{name!r}: package.module:NAME is needed")
    try:
        return getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        raise ScoreError(f"{name!r}: there is no module {error.name!r}") from error
    except AttributeError as error:
        raise ScoreError(f"{name!r}: {module} has no {attribute!r}") from error
