"""A connection goes where it was told to, and ends in time."""

import time

import pytest

from data_pipeline.collect.download.network.addresses import Target
from data_pipeline.collect.download.network.connection import Connection
from data_pipeline.collect.download.network.fetch import Body, Fetcher
from data_pipeline.collect.download.outcomes import Failed
from data_pipeline.collect.download_settings import DownloadSettings
from tests.helpers.bad_server import BadServer, picture


def test_the_name_is_not_resolved_again():
    with BadServer() as server:
        port = int(server.place.rpartition(":")[2])
        # Nobody can resolve this name; the server is told it all the same.
        target = Target("http", "pictures.invalid", port, "/ok/1.jpg")
        connection = Connection(target, ["127.0.0.1"], 2, 2)
        connection.request("GET", target.path)
        assert connection.getresponse().read() == picture(1)
        connection.close()
        assert server.headers[0]["Host"] == f"pictures.invalid:{port}"


def test_the_next_address_if_one_does_not_answer():
    with BadServer() as server:
        port = int(server.place.rpartition(":")[2])
        target = Target("http", "pictures.invalid", port, "/")
        connection = Connection(target, ["127.0.0.9", "127.0.0.1"], 2, 2)
        connection.connect()
        connection.close()
        with pytest.raises(ConnectionRefusedError):
            Connection(target, ["127.0.0.9"], 2, 2).connect()


def test_connections_are_kept_and_may_be_gone(tmp_path):
    with BadServer() as server:
        settings = DownloadSettings(contact="x", allow=(server.place,))
        fetcher, port = Fetcher(settings), int(server.place.rpartition(":")[2])

        def fetch(path):
            return fetcher.fetch(Target("http", "127.0.0.1", port, path), tmp_path / "body")

        for number in range(3):
            assert isinstance(fetch(f"/ok/{number}"), Body)
            assert (tmp_path / "body").read_bytes() == picture(number)
        assert server.connections == 1
        # A server may close a kept connection while nobody looks.
        fetcher._idle[0]._open.shutdown(2)
        assert isinstance(fetch("/ok/4"), Body) and server.connections == 2
        fetcher.close()


@pytest.mark.parametrize("path", ["/drip/1", "/dripheaders/1", "/hang/1"])
def test_a_request_ends_in_time_however_slowly_bytes_come(tmp_path, path):
    with BadServer() as server:
        settings = DownloadSettings(allow=(server.place,), total_timeout=0.3)
        target = Target("http", "127.0.0.1", int(server.place.rpartition(":")[2]), path)
        begun = time.monotonic()
        with pytest.raises(Failed, match="timeout the whole request"):
            Fetcher(settings).fetch(target, tmp_path / "body")
        assert 0.25 < time.monotonic() - begun < 30  # the server has minutes


def test_nothing_stays_open_after_a_failure(tmp_path):
    with BadServer() as server:
        settings = DownloadSettings(allow=(server.place,), max_bytes=10_000)
        target = Target("http", "127.0.0.1", int(server.place.rpartition(":")[2]), "/endless/1")
        with pytest.raises(Failed, match="too large") as kept:
            Fetcher(settings).fetch(target, tmp_path / "body")
        until = time.monotonic() + 5
        while server.open and time.monotonic() < until:  # it sends until we are gone
            time.sleep(0.01)
        assert not server.open and kept.value.threshold == 10_000
