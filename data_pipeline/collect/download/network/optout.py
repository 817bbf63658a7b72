"""Headers by which a host says that a picture may not be used for training.

X-Robots-Tag: noai, noimageai, noml, none, noindex or noimageindex, for all or for us by name; and
``tdm-reservation: 1`` (W3C's Text and Data Mining Reservation Protocol). They can only be read with
the answer, so the body is not read where one of them is there. Markup and
/.well-known/tdmrep.json are not read: what is fetched are pictures, not pages.
"""

import re
from collections.abc import Iterable

DIRECTIVES = frozenset(("noai", "noimageai", "noml", "none", "noindex", "noimageindex"))
# Directives that have a value of their own; any other word before a colon is a robot's name.
VALUED = ("max-snippet", "max-image-preview", "max-video-preview", "unavailable_after")
# A robot's name has no blanks, as the rest of unavailable_after's date has: "25 jun 2010 15:00".
ROBOT = re.compile(r"\*|[^\s:]*[a-z][^\s:]*")


def opted_out(headers: Iterable[tuple[str, str]], agent: str) -> str:
    """The header that forbids the use, "x-robots-tag: noai"; "" if none does.

    Args:
        headers: (name, value) of an answer; a name may be there several times.
        agent: our name.
    """
    for name, value in headers:
        name = name.lower()
        if name == "tdm-reservation" and value.strip() == "1":
            return "tdm-reservation: 1"
        if name == "x-robots-tag":
            for word in _directives(value, agent.lower()):
                if word in DIRECTIVES:
                    return f"x-robots-tag: {word}"
    return ""


def _directives(value: str, agent: str) -> Iterable[str]:
    """The directives for all and for us."""
    ours = True
    for part in value.lower().split(","):
        word, colon, rest = part.partition(":")
        word = word.strip()
        if colon and word not in VALUED and ROBOT.fullmatch(word):
            ours, word = word in (agent, "*"), rest.strip()
        if ours:
            yield word
