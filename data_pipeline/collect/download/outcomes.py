"""Why a row has no picture: it was refused, or it failed.

No value holds the row's own address or a name: the log of states has neither.

| reason | state | value, threshold |
|---|---|---|
| scheme, credentials, port | refused | what the address has |
| address | refused | the private, local or reserved address that its name leads to |
| robots.txt | refused | |
| opt-out | refused | the header that says so |
| refused by name, by address, by hash | refused | (refused.py) |
| url | failed | why it cannot be read |
| dns, connection, timeout, cut short | failed, tried again | what happened; seconds |
| status | failed; 408, 425, 429 and 5xx are tried again | the HTTP status |
| host waits | failed, tried again | seconds that the host asks for, most that we wait |
| host is silent | failed, tried again | the reason of the last of them, failures in a row |
| redirects | failed | their number, most |
| too large | failed | bytes, most |
| encoding | failed | the Content-Encoding that was not asked for |
| sha256 | failed | the hash of what came, the list's |
| not a picture | failed | what its first bytes are |
| too many pixels | failed | pixels, most |
| damaged | failed | why it cannot be decoded |
| decoder | failed | how the process that decoded it ended; seconds |
| no file | failed | why a picture of a folder or tar cannot be read |
| unexpected | failed | an error of ours: its kind and its line |
"""

from typing import Any

AGAIN = (408, 425, 429)  # and all of 500 to 599


class NotFetched(Exception):
    """A row without a picture.

    Attributes:
        state: "refused" or "failed". reason: of the table above.
        value, threshold: what was found, and what it was held against; for JSON.
        again: whether another try may end otherwise.
        wait: seconds that the host asks for before the next request; None: it does not say.
    """

    state = "failed"

    def __init__(
        self,
        reason: str,
        value: Any = None,
        threshold: Any = None,
        again: bool = False,
        wait: float | None = None,
    ):
        super().__init__(f"{reason} {'' if value is None else value}".strip())
        self.reason, self.value, self.threshold = reason, value, threshold
        self.again, self.wait = again, wait


class Refused(NotFetched):
    """A row that is not fetched on purpose."""

    state = "refused"


class Failed(NotFetched):
    """A row that could not be fetched, or whose picture is not used."""


def bad_status(status: int, wait: float | None = None) -> Failed:
    """The failure of an HTTP status."""
    again = status in AGAIN or 500 <= status <= 599
    return Failed("status", status, again=again, wait=wait)
