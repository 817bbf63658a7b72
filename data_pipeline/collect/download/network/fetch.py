"""One request: its headers are judged before the body is read, and the body goes to a file."""

import email.utils
import hashlib
import http.client
import ssl
import time
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.collect.download.network.addresses import Resolver, Target, redirected, resolve
from data_pipeline.collect.download.network.connection import Connection
from data_pipeline.collect.download.network.optout import opted_out
from data_pipeline.collect.download.outcomes import Failed, Refused, bad_status
from data_pipeline.collect.download_settings import TOKEN, DownloadSettings

CHUNK = 1 << 16
REDIRECTS = (301, 302, 303, 307, 308)
ACCEPT = "image/jpeg, image/png, image/webp, image/avif"
LONGEST_WAIT = 10**9  # seconds; a host may name a number that no clock has
FAULTS = (OSError, http.client.HTTPException, ValueError)  # of reading an answer


@dataclass(frozen=True)
class Body:
    """What came: the hash of the bytes and their number."""

    sha256: str
    size: int


class Fetcher:
    """Asks one origin; keeps its connections for the next request."""

    def __init__(self, settings: DownloadSettings, resolver: Resolver | None = None):
        self.settings, self.resolver = settings, resolver
        self._idle: list[Connection] = []

    def fetch(
        self,
        target: Target,
        file: Path,
        max_bytes: int | None = None,
        accept: str = ACCEPT,
        opt_out: bool = True,
    ) -> Body | Target:
        """Write the answer's body into ``file``, or return where a redirect leads.

        Args:
            max_bytes: by default the settings'. opt_out: whether headers may forbid the use.

        Raises:
            Refused, Failed: see outcomes.py. OSError: ``file`` cannot be written.
        """
        limit = self.settings.max_bytes if max_bytes is None else max_bytes
        begun = time.monotonic()
        try:
            connection, reused = self._idle.pop(), True
        except IndexError:
            connection, reused = self._connection(target), False
        # A server may have closed a kept connection at any time: that is no failure of the row.
        try:
            return self._ask(connection, target, file, limit, accept, opt_out)
        except _Gone:
            if not reused:
                raise
        left = self.settings.total_timeout - (time.monotonic() - begun)
        if left <= 0:
            raise self._too_slow()
        return self._ask(self._connection(target), target, file, limit, accept, opt_out)

    def close(self) -> None:
        """Close the kept connections."""
        idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def _connection(self, target: Target) -> Connection:
        settings = self.settings
        found = resolve(target, settings.allow, settings.connect_timeout, self.resolver)
        return Connection(target, found, settings.connect_timeout, settings.total_timeout)

    def _ask(self, connection, target, file, limit, accept, opt_out) -> Body | Target:
        answer = None
        try:
            with connection.limit(self.settings.total_timeout):
                answer = self._headers(connection, target, accept)
                if opt_out and (said := opted_out(answer.getheaders(), TOKEN)):
                    raise Refused("opt-out", said)
                location = answer.getheader("location")
                if answer.status in REDIRECTS and location:
                    return redirected(target, _as_utf8(location), self.settings.allow)
                if answer.status != 200:
                    raise bad_status(answer.status, retry_after(answer.getheader("retry-after")))
                body = self._body(connection, answer, file, limit)
            if not answer.will_close and not connection.expired:
                self._idle.append(connection)
                connection = None
            return body
        finally:
            if connection is not None:
                connection.close()
                if answer is not None:
                    answer.close()  # it has a hold of the socket of its own

    def _headers(self, connection: Connection, target: Target, accept: str):
        headers = {"User-Agent": self.settings.user_agent, "Accept": accept}
        try:
            if connection.sock is None:
                connection.connect()
        except FAULTS as error:
            raise self._fault(connection, error, "connecting") from error
        try:
            connection.request("GET", target.path, headers=headers)
            return connection.getresponse()
        except FAULTS as error:
            raise self._fault(connection, error, "waiting for the headers", _Gone) from error

    def _body(self, connection: Connection, answer, file: Path, limit: int) -> Body:
        encoding = answer.getheader("content-encoding", "identity").strip().lower()
        if encoding not in ("", "identity"):
            raise Failed("encoding", encoding, "identity")
        length = answer.length  # None where the server does not say
        if length is not None and length > limit:
            raise Failed("too large", length, limit)
        digest, size = hashlib.sha256(), 0
        with open(file, "wb") as out:
            while True:
                try:
                    part = answer.read(min(CHUNK, limit + 1 - size))
                except FAULTS as error:
                    raise self._fault(connection, error, "reading") from error
                if not part:
                    break
                size += len(part)
                if size > limit:
                    raise Failed("too large", size, limit)
                digest.update(part)
                out.write(part)
        if connection.expired:
            raise self._too_slow()
        if length is not None and size < length:
            raise Failed("cut short", size, length, again=True)
        return Body(digest.hexdigest(), size)

    def _fault(self, connection, error: Exception, doing: str, kind: type = Failed) -> Failed:
        if connection.expired:
            return self._too_slow()
        if isinstance(error, TimeoutError):
            return Failed("timeout", doing, self.settings.connect_timeout, again=True)
        if isinstance(error, http.client.IncompleteRead):
            return Failed("cut short", len(error.partial), again=True)
        if isinstance(error, ssl.SSLCertVerificationError):
            return Failed("connection", f"certificate: {error.verify_message}", again=True)
        said = getattr(error, "strerror", None) or str(error) or type(error).__name__
        return kind("connection", said.partition("\n")[0], again=True)

    def _too_slow(self) -> Failed:
        return Failed("timeout", "the whole request", self.settings.total_timeout, again=True)


class _Gone(Failed):
    """The connection ended before an answer came."""


def retry_after(value: str | None) -> float | None:
    """Seconds of a Retry-After header, which may hold a date; None without one."""
    if value is None:
        return None
    try:
        return float(min(max(0, int(value)), LONGEST_WAIT))
    except ValueError:
        pass
    try:
        wait = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        return min(max(0.0, wait), float(LONGEST_WAIT))
    except (ValueError, TypeError, OverflowError):  # such as a year that no clock has
        return None


def _as_utf8(header: str) -> str:
    """http.client reads headers as Latin-1; servers mean UTF-8."""
    try:
        return header.encode("latin-1").decode("utf-8")
    except UnicodeError:
        return header
