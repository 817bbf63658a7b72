"""A connection to an address that was checked, with an end to every request."""

import http.client
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

from data_pipeline.collect.download.network.addresses import Target


class Connection(http.client.HTTPConnection):
    """HTTP or HTTPS to one of ``addresses``; the name is only in Host and in the certificate.

    Proxies of the environment are not used: they would resolve the name themselves.
    """

    def __init__(
        self, target: Target, addresses: list[str], connect_timeout: float, timeout: float
    ):
        self.default_port = {"http": 80, "https": 443}[target.scheme]
        super().__init__(target.host, target.port, timeout=connect_timeout)
        self.target, self.addresses, self._read_timeout = target, addresses, timeout
        self.expired = False
        self._open: socket.socket | None = None

    def connect(self) -> None:
        """Connect to the first address that answers, all within the time-out."""
        until = time.monotonic() + (self.timeout or 0)
        for number, address in enumerate(self.addresses, 1):
            left = max(0.01, until - time.monotonic())
            try:
                self.sock = socket.create_connection((address, self.port), left)
                break
            except OSError:
                if number == len(self.addresses):
                    raise
        # Nagle's algorithm would hold the request back for nothing.
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._open = self.sock
        if self.target.scheme == "https":
            # The handshake comes after, so that ``limit`` can end it as well.
            self.sock = _context().wrap_socket(
                self.sock, server_hostname=self.host, do_handshake_on_connect=False
            )
            self._open = self.sock
            self.sock.do_handshake()
        self.sock.settimeout(self._read_timeout)

    @contextmanager
    def limit(self, seconds: float) -> Iterator[None]:
        """Ends whatever the connection is doing after ``seconds``, however slowly bytes come.

        A socket's own time-out begins anew with every byte.
        """
        timer = threading.Timer(seconds, self._expire)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _expire(self) -> None:
        self.expired = True
        if self._open is not None:
            try:
                # Of the socket itself: SSLSocket's own would pull the rug from under a reader.
                socket.socket.shutdown(self._open, socket.SHUT_RDWR)
            except OSError:  # closed already
                pass


@cache
def _context() -> ssl.SSLContext:
    return ssl.create_default_context()
