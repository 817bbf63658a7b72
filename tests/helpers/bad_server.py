"""A web server on 127.0.0.1 that misbehaves in all the ways that the download has to survive.

    with BadServer() as server:
        server.url("/ok/1.jpg")            # a picture of its own for every number
        server.asked                       # the paths in the order in which they were asked for

    python -m tests.helpers.bad_server --port 8000

It serves drawn noise. With a folder (``BadServer(folder)``) /files/… are that folder's files.
"""

import argparse
import functools
import io
import struct
import threading
import time
import zlib
from collections import Counter
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np
from PIL import Image

SIDE = 24  # pixels of a good picture
DRIP = 0.05  # seconds between the bytes of a slow answer
PAGE = b"<!DOCTYPE html><html><body>Sign in to see this picture</body></html>"


class BadServer:
    """Serves in threads until it is closed.

    Args:
        folder: of files to serve below /files/.
        robots: the text of robots.txt; None: there is none. An int: that status.
        busy: how many times /busy answers 429. wait: its Retry-After.
        delay: seconds before each good picture.
    """

    def __init__(
        self,
        folder: str | Path | None = None,
        robots: str | int | None = None,
        busy: int = 1,
        wait: str = "0",
        address: str = "127.0.0.1",
        port: int = 0,
        delay: float = 0.0,
        side: int = SIDE,
    ):
        self.folder, self.robots, self.busy, self.wait = folder, robots, busy, wait
        self.delay, self.side = delay, side
        self.asked: list[str] = []
        self.headers: list[Mapping[str, str]] = []
        self.times: list[float] = []
        self.open = self.most_open = self.connections = 0
        self.count: Counter[str] = Counter()
        self.lock = threading.Lock()
        self.closing = threading.Event()
        handler = functools.partial(_Handler, self)
        self._server = ThreadingHTTPServer((address, port), handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.02,), daemon=True
        )

    @property
    def place(self) -> str:
        """127.0.0.1:12345"""
        host, port = self._server.server_address[:2]
        return f"{host}:{port}"

    def url(self, path: str) -> str:
        return f"http://{self.place}{path}"

    def __enter__(self) -> "BadServer":
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()


@functools.lru_cache(256)
def picture(number: int, kind: str = "JPEG", side: int = SIDE, **options) -> bytes:
    """A file of one grey noise picture of its own for each number."""
    noise = np.random.default_rng(number).integers(0, 256, (side, side, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, kind, **options)
    return file.getvalue()


def turned() -> bytes:
    """A JPEG of 24 × 12 pixels that EXIF says to turn by 90 degrees, with a GPS position."""
    exif = Image.Exif()
    exif[0x0112] = 6
    exif.get_ifd(0x8825)[1] = "N"
    pixels = np.zeros((12, 24, 3), np.uint8)
    pixels[:, :8] = 255
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", exif=exif, quality=95)
    return file.getvalue()


def bomb(side: int = 60_000) -> bytes:
    """A PNG of a few kilobytes whose header says side × side pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(name + data))
        return struct.pack(">I", len(data)) + name + data + check

    head = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    body = zlib.compress(bytes(1 << 16), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # otherwise each body waits 40 ms for an acknowledgement

    def __init__(self, server: BadServer, *args):
        self.of = server
        super().__init__(*args)

    def log_message(self, *_) -> None:
        pass

    def handle(self) -> None:
        with self.of.lock:
            self.of.connections += 1
        try:
            super().handle()
        except OSError:  # whoever asked has gone
            pass

    def do_GET(self) -> None:
        of = self.of
        with of.lock:
            of.asked.append(self.path)
            of.headers.append(dict(self.headers))
            of.times.append(time.monotonic())
            of.open += 1
            of.most_open = max(of.most_open, of.open)
            of.count[self.path] += 1
        try:
            self._answer(urlsplit(self.path))
        except OSError:  # whoever asked has gone
            self.close_connection = True
        finally:
            with of.lock:
                of.open -= 1

    def _answer(self, parts) -> None:
        of, name = self.of, parts.path.strip("/").partition("/")[0]
        query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        number = int("".join(filter(str.isdigit, parts.path)) or 0)
        if name == "robots.txt":
            if isinstance(of.robots, str):
                return self._send(of.robots.encode(), kind="text/plain")
            return self._send(b"", status=of.robots or 404)
        if name in ("ok", "private"):
            time.sleep(of.delay)
            return self._send(picture(number, side=of.side))
        if name == "files":
            return self._file(unquote(parts.path.removeprefix("/files/")))
        if name == "status":
            return self._send(b"", status=number)
        if name == "busy":
            with of.lock:
                busy = of.count[self.path] <= of.busy
            if busy:
                return self._send(b"", status=429, headers={"Retry-After": of.wait})
            return self._send(picture(number))
        if name == "to":
            return self._send(b"", status=302, headers={"Location": query["url"]})
        if name == "loop":
            return self._send(b"", status=301, headers={"Location": f"/loop/{number + 1}"})
        if name == "later":
            return self._send(b"", status=503, headers={"Retry-After": LATER[number]})
        if name in BODIES:
            return self._send(BODIES[name]())
        if name in HEADERS:
            return self._send(picture(number), headers=HEADERS[name])
        getattr(self, f"_{name}", self._missing)()

    def _send(self, body: bytes, status=200, kind="image/jpeg", headers=None, length=None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body)

    def _missing(self) -> None:
        self._send(b"", status=404)

    def _file(self, name: str) -> None:
        if self.of.folder is None or not (path := Path(self.of.folder, name)).is_file():
            return self._missing()
        self._send(path.read_bytes())

    def _huge(self) -> None:
        """It says that terabytes follow."""
        self._send(picture(0), length=1 << 40)
        self.close_connection = True

    def _short(self) -> None:
        """It ends before the length that it says."""
        self._send(picture(0), length=len(picture(0)) + 100)
        self.close_connection = True

    def _endless(self) -> None:
        """A body without a length that does not end."""
        self.send_response(200)
        self.send_header("Content-Type", "image/jpeg")
        self.end_headers()
        self.close_connection = True
        while not self.of.closing.is_set():
            self.wfile.write(picture(0) * 16)

    def _drip(self) -> None:
        """A body that comes byte by byte."""
        self.send_response(200)
        self.send_header("Content-Length", "100000")
        self.end_headers()
        self.close_connection = True
        self._slowly(picture(0) * 100)

    def _dripheaders(self) -> None:
        """Headers that come byte by byte."""
        self.close_connection = True
        self._slowly(b"HTTP/1.1 200 OK\r\n" + b"X-More: and more\r\n" * 1000)

    def _slowly(self, data: bytes) -> None:
        for i in range(len(data)):
            if self.of.closing.wait(DRIP):
                return
            self.wfile.write(data[i : i + 1])
            self.wfile.flush()

    def _hang(self) -> None:
        """No answer at all."""
        self.close_connection = True
        self.of.closing.wait(600)

    def _drop(self) -> None:
        """The connection ends without an answer."""
        self.close_connection = True


BODIES = {
    "page": lambda: PAGE,  # /page/anna.jpg
    "truncated": lambda: picture(0, side=200)[:9000],
    "bomb": bomb,
    "png": lambda: picture(1, "PNG"),
    "webp": lambda: picture(2, "WEBP"),
    "gif": lambda: picture(3, "GIF"),
    "turned": turned,
    "empty": lambda: b"",
}
LATER = ("9" * 400, "Sat, 01 Jan 99999999999 00:00:00 GMT", "9" * 5000)  # by /later/NUMBER
HEADERS = {
    "noai": {"X-Robots-Tag": "noai"},
    "othersnoai": {"X-Robots-Tag": "otherbot: noai"},
    "tdm": {"tdm-reservation": "1"},
    "gzip": {"Content-Encoding": "gzip"},
}

# How a row of each path ends where robots.txt forbids /private/ and no other place is allowed.
REASONS = {
    "/ok/1.jpg": "done",
    "/png/1": "done",
    "/webp/1.jpg": "done",
    "/turned/1.jpg": "done",
    "/busy/1.jpg": "done",
    "/othersnoai/1.jpg": "done",
    "/to?url=/ok/2.jpg": "done",
    "/to?url=http://[x": "url",
    "/status/404": "status",
    "/status/503": "status",
    "/endless/1.jpg": "too large",
    "/huge/1.jpg": "too large",
    "/drip/1.jpg": "timeout",
    "/dripheaders/1.jpg": "timeout",
    "/hang/1.jpg": "timeout",
    "/drop/1.jpg": "connection",
    "/short/1.jpg": "cut short",
    "/gzip/1.jpg": "encoding",
    "/loop/0": "redirects",
    "/to?url=http://127.0.0.1/1.jpg": "address",
    "/to?url=http://169.254.169.254/latest/meta-data/": "address",
    "/to?url=http://[::ffff:127.0.0.1]/1.jpg": "address",
    "/to?url=file:///etc/passwd": "scheme",
    "/to?url=http://me:secret@example.org/": "credentials",
    "/to?url=/private/2.jpg": "robots.txt",
    "/private/1.jpg": "robots.txt",
    "/noai/1.jpg": "opt-out",
    "/tdm/1.jpg": "opt-out",
    "/page/anna.jpg": "not a picture",
    "/gif/1.jpg": "not a picture",
    "/empty/1.jpg": "not a picture",
    "/truncated/1.jpg": "damaged",
    "/bomb/1.png": "too many pixels",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--folder", help="files to serve below /files/")
    parser.add_argument("--robots", default="User-agent: *\nDisallow: /private/\n")
    args = parser.parse_args()
    with BadServer(args.folder, args.robots, port=args.port) as server:
        print(server.url("/"), flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
