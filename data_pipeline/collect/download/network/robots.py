"""robots.txt of one origin, as RFC 9309 has it: who may not be asked, and how often."""

import time
from pathlib import Path
from typing import Any

from data_pipeline.collect.download.network.addresses import Target
from data_pipeline.collect.download.network.fetch import Fetcher
from data_pipeline.collect.download.outcomes import Failed, NotFetched, Refused
from data_pipeline.collect.download_settings import TOKEN, DownloadSettings

MOST_BYTES = 4 << 20  # the RFC asks for 500 KiB at least
KEPT = 24 * 3600.0  # seconds after which it is asked again
LONGEST_DELAY = 60.0  # seconds of a Crawl-delay that are respected
ALWAYS = (429,)  # of 400 to 499, the one that does not mean that there is none


class Robots:
    """What an origin allows; ``interval`` is its Crawl-delay in seconds, 0 without one."""

    def __init__(self, rules: Any = None):
        self._rules = rules
        delay = float(rules.crawl_delay(TOKEN) or 0) if rules is not None else 0.0
        self.interval = min(delay, LONGEST_DELAY)
        self._until = time.monotonic() + KEPT

    def check(self, target: Target) -> None:
        """Refused if the path is forbidden."""
        if self._rules is not None and not self._rules.can_fetch(target.url, TOKEN):
            raise Refused("robots.txt")

    @property
    def stale(self) -> bool:
        return time.monotonic() > self._until


def read_robots(target: Target, fetcher: Fetcher, settings: DownloadSettings, file: Path) -> Robots:
    """Ask for the robots.txt of a target's origin.

    An answer of 400 to 499 means that there is none. Without an answer, or with 429 or 500 and
    more, nothing of the origin may be fetched.

    Args:
        file: where its text may be written meanwhile.

    Raises:
        Refused, Failed: it could not be read.
    """
    place = Target(target.scheme, target.host, target.port, "/robots.txt")
    asked = fetcher
    try:
        for _ in range(settings.max_redirects + 1):
            found = asked.fetch(place, file, MOST_BYTES, "text/plain", opt_out=False)
            if not isinstance(found, Target):
                return Robots(parse_robots(file.read_bytes()))
            if found.origin != place.origin:
                asked = Fetcher(settings, fetcher.resolver)
            place = found
        return Robots()  # the RFC: too many redirects count as none
    except NotFetched as error:
        if error.reason == "status" and 400 <= error.value < 500 and error.value not in ALWAYS:
            return Robots()
        if error.reason != "dns" and isinstance(error, Failed):
            said = f"robots.txt: {error.value}"
            raise Failed(error.reason, said, error.threshold, True, error.wait) from error
        raise
    finally:
        file.unlink(missing_ok=True)
        if asked is not fetcher:
            asked.close()


def parse_robots(raw: bytes) -> Any:
    """The rules of a file, with ``can_fetch(url, agent)`` and ``crawl_delay(agent)``."""
    return import_protego().parse(raw.decode("utf-8", "replace").removeprefix("\ufeff"))


def import_protego() -> Any:
    """The class that reads robots.txt, or an ImportError that says how to install it."""
    try:
        from protego import Protego
    except ImportError as error:
        raise ImportError(
            "downloads need protego, which reads robots.txt: pip install 'persongen_jax[collect]'"
        ) from error
    return Protego
