"""The settings of the download (apart from it, since those of all stages hold them)."""

import re
from dataclasses import dataclass, fields
from importlib.metadata import PackageNotFoundError, version

TOKEN = "persongen_jax"  # what robots.txt and X-Robots-Tag call us
MOST_PIXELS = 100_000_000  # more than the loader reads


@dataclass(frozen=True)
class DownloadSettings:
    """How pictures are fetched.

    Attributes:
        contact: a mail address or page of yours, for the owners of the hosts; every request names
            it. Needed where anything comes from the network.
        threads: requests at once. per_host: of them to one host.
        interval: least seconds between two requests to one host; a longer Crawl-delay of its
            robots.txt holds instead.
        connect_timeout, total_timeout: seconds for a connection, and for a request in all.
        decode_timeout: seconds for decoding a picture.
        max_bytes: of a file. max_pixels: of a picture, from its header.
        max_redirects: of a row.
        tries: requests for a row in one run, where another may end otherwise.
        backoff: seconds before the second try; they double with each further one, and up to half
            of it is left to chance.
        max_wait: the longest that a run waits for a host, seconds. Where a host asks for more, its
            rows are left for another run.
        silent_after: failures in a row after which a host is not asked in this run any more.
        decoders: processes that decode.
        quality: of the JPEG files that are written.
        retry_failed: take up failed and refused rows, too, that are not tried again otherwise.
        refusals: a file of people, addresses and hashes that are not collected, besides the work
            folder's own (refused.py).
        allow: "127.0.0.1:8080", …: addresses with ports that are asked although they are local.
        fixed_time: written as the time of fetching in place of the real one, so that two runs can
            be compared byte by byte.
    """

    contact: str = ""
    threads: int = 32
    per_host: int = 2
    interval: float = 0.5
    connect_timeout: float = 10.0
    total_timeout: float = 60.0
    decode_timeout: float = 60.0
    max_bytes: int = 32 << 20
    max_pixels: int = 40_000_000
    max_redirects: int = 5
    tries: int = 3
    backoff: float = 2.0
    max_wait: float = 120.0
    silent_after: int = 10
    decoders: int = 2
    quality: int = 95
    retry_failed: bool = False
    refusals: str = ""
    allow: tuple[str, ...] = ()
    fixed_time: str = ""

    def __post_init__(self):
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, bool | str | tuple):
                continue
            least = 0 if field.name in ("interval", "backoff", "max_wait", "max_redirects") else 1
            least = 0.01 if field.name.endswith("timeout") else least
            if not least <= value < float("inf"):
                raise ValueError(f"{field.name}={value}: at least {least} is needed")
        if self.max_pixels > MOST_PIXELS:
            raise ValueError(f"max_pixels={self.max_pixels}: pictures are read up to {MOST_PIXELS}")
        if not 1 <= self.quality <= 100:
            raise ValueError(f"quality={self.quality}: JPEG's is 1 to 100")
        if not re.fullmatch(r"[\x20-\x7e]*", self.contact) or set("()<>") & set(self.contact):
            raise ValueError(
                f"contact={self.contact!r}: a mail address or a page in ASCII is needed"
            )
        if self.fixed_time and not re.fullmatch(
            r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", self.fixed_time
        ):
            raise ValueError(f"fixed_time={self.fixed_time!r}: give it as 2026-01-31T12:00:00Z")
        for place in self.allow:
            if not re.fullmatch(r"(\d+(\.\d+){3}|\[[0-9a-f:]+\]):\d+", place):
                raise ValueError(f"allow: {place!r} is no address with a port such as 127.0.0.1:80")

    @property
    def user_agent(self) -> str:
        """Who asks, for what, and whom to write to."""
        return f"{TOKEN}/{_version()} (+{self.contact}; collects pictures of people for training)"


def _version() -> str:
    try:
        return version(TOKEN)
    except PackageNotFoundError:  # run from the source
        return "0"
