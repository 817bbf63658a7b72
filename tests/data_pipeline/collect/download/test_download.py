"""The download from a server that misbehaves: each row ends in its reason, and nobody else is
asked."""

import multiprocessing
import os
import signal
import threading
import time

import numpy as np
import pytest

from data_pipeline.collect.download import stage
from data_pipeline.collect.download.stage import DownloadError
from data_pipeline.collect.looking.looks import Look
from data_pipeline.collect.looking.store import Store
from data_pipeline.collect.purge.__main__ import main as purge
from data_pipeline.collect.records import Row, read_pictures
from data_pipeline.collect.rows.sources import read_rows
from data_pipeline.collect.settings import Measure
from tests.data_pipeline.collect.download.conftest import TIME, files_of
from tests.helpers.bad_server import REASONS, BadServer, picture, turned


def test_every_misbehaviour_ends_in_its_reason(collect):
    with (
        BadServer(robots="User-agent: *\nDisallow: /private/\n") as server,
        BadServer() as outside,
    ):
        paths = {path: reason for path, reason in REASONS.items() if reason != "timeout"}
        expected = {server.url(path): reason for path, reason in paths.items()}
        expected[server.url(f"/to?url={outside.url('/ok/1.jpg')}")] = "port"
        expected[outside.url("/ok/1.jpg")] = "port"
        expected["http://127.0.0.1/1.jpg"] = "address"
        expected[f"https://{server.place}/1.jpg"] = "connection"  # it speaks no TLS
        expected["ftp://example.org/1.jpg"] = "scheme"
        rows = [Row("ann", url) for url in expected]
        rows.append(Row("ann", server.url("/ok/3.jpg"), sha256="0" * 64))
        expected[rows[-1].url] = "sha256"
        found = collect(rows, server)

        assert {row.url: found.reason(row.url) for row in rows} == expected
        assert outside.asked == []
        assert not [path for path in server.asked if path.startswith("/private")]
        assert server.count["/robots.txt"] == 1
        assert server.count["/status/503"] == 2 and server.count["/status/404"] == 1
        assert all("tests@example.org" in headers["User-Agent"] for headers in server.headers)

    done = found.pictures[server.url("/turned/1.jpg")]
    assert (done.width, done.height, done.rotated, done.fetched) == (12, 24, True, TIME)
    entry = found.dropped[server.url("/bomb/1.png")]
    assert entry["stage"] == "download" and entry["identity"] == "ann"
    assert (entry["value"], entry["threshold"]) == (60_000**2, 1_000_000)
    assert list(found.pictures) == [row.url for row in rows if row.url in found.pictures]
    assert read_pictures(found.work) == list(found.pictures.values())
    for path in found.pictures.values():
        assert (found.work / path.path).stat().st_size == path.bytes
    assert not (found.work / "partial").exists()


def test_no_row_takes_longer_than_its_time(collect):
    """Apart from the others, for whom a busy machine would be too slow with so little time."""
    slow = [path for path, reason in REASONS.items() if reason == "timeout"]
    with BadServer() as server:
        begun = time.monotonic()
        found = collect([server.url(path) for path in slow], server, total_timeout=1.5)
        assert time.monotonic() - begun < 60  # two tries; the server has ten minutes
        assert {path: found.reason(server.url(path)) for path in slow} == dict.fromkeys(
            slow, "timeout"
        )
        assert all(server.count[path] == 2 for path in slow)


def test_another_run_takes_up_what_may_succeed_now(collect):
    with BadServer(busy=2) as server:
        paths = ["/ok/1.jpg", "/status/404", "/busy/2.jpg", "/page/1.jpg"]
        urls = [server.url(path) for path in paths]
        first = collect(urls, server, tries=1)
        assert [first.reason(url) for url in urls] == ["done", "status", "status", "not a picture"]
        server.asked.clear()
        collect(urls, server, tries=1)
        assert server.asked == ["/robots.txt", "/busy/2.jpg"]
        server.asked.clear()
        last = collect(urls, server, tries=1, retry_failed=True)
        assert sorted(server.asked) == ["/busy/2.jpg", "/page/1.jpg", "/robots.txt", "/status/404"]
        assert last.reason(urls[2]) == "done"
        # What is done is done, unless its file is not there any more.
        (last.work / last.pictures[urls[0]].path).unlink()
        server.asked.clear()
        assert list(collect(urls, server, tries=1).pictures) == [urls[0], urls[2]]
        assert server.asked == ["/robots.txt", "/ok/1.jpg"]


def test_any_number_of_threads_writes_the_same(collect):
    with BadServer() as one, BadServer(address="127.0.0.2") as two:
        paths = [f"/ok/{i}.jpg" for i in range(12)] + ["/status/404", "/page/1", "/ok/3.jpg"]
        rows = [Row("ab"[i % 2], (one, two)[i % 2].url(path)) for i, path in enumerate(paths)]
        told = {"licence": "CC0", "consent": "form 7", "source": "a page", "origin": "set 1"}
        rows.append(Row("c", rows[0].url, caption="ü", **told))
        first = collect(rows, one, two, work="1", threads=1)
        other = collect(rows, one, two, work="4", threads=4, decoders=2)
    assert len(first.pictures) == 13
    last = read_pictures(first.work)[-1]
    assert {name: getattr(last, name) for name in told} == told and last.caption == "ü"
    assert files_of(first.work) == files_of(other.work)


def test_hosts_are_asked_in_turns_and_not_too_often(collect):
    with BadServer(delay=0.05) as one, BadServer(address="127.0.0.2", delay=0.05) as two:
        urls = [one.url(f"/ok/{i}.jpg") for i in range(6)] + [two.url(f"/ok/{i}") for i in range(6)]
        begun = time.monotonic()
        found = collect(urls, one, two, interval=0.1, per_host=2)
        assert len(found.pictures) == 12
        for server in (one, two):
            assert server.most_open <= 2
            assert len(server.asked) == 7 and server.times[-1] - begun > 6 * 0.1
        # The second host does not wait until the first is done.
        assert two.times[0] < one.times[-1]


def test_waiting_as_long_as_a_host_asks(collect):
    with BadServer(wait="1") as server, BadServer(wait="3600", address="127.0.0.2") as long:
        urls = [server.url("/busy/1.jpg"), *(long.url(f"/busy/{i}.jpg") for i in (1, 2, 3))]
        found = collect(urls, server, long, threads=1, max_wait=5)
        assert found.reason(urls[0]) == "done"
        asked = dict(zip(server.asked, server.times, strict=True))
        first = server.times[server.asked.index("/busy/1.jpg")]
        assert asked["/busy/1.jpg"] - first >= 0.99
        # An hour is not waited for, and the host is left alone.
        assert [found.reason(url) for url in urls[1:]] == ["status", "host waits", "host waits"]
        assert long.asked == ["/robots.txt", "/busy/1.jpg"]


def test_a_host_that_asks_for_ages_costs_only_its_rows(collect):
    with BadServer() as server, BadServer(address="127.0.0.2") as other:
        urls = [server.url("/later/1"), server.url("/later/2"), server.url("/later/0")]
        urls += [server.url("/ok/1.jpg"), other.url("/ok/2.jpg")]
        found = collect(urls, server, other, threads=1, tries=1)
        reasons = ["status", "status", "status", "host waits", "done"]
        assert [found.reason(url) for url in urls] == reasons
        assert found.dropped[urls[3]]["value"] == 10**9


def test_an_error_of_ours_costs_its_row(collect):
    def resolver(host, port):
        return [host if host == "127.0.0.1" else "no address"]

    with BadServer() as server:
        urls = ["http://nowhere.example/1.jpg", server.url("/ok/1.jpg")]
        found = collect(urls, server, resolver=resolver)
        assert [found.reason(url) for url in urls] == ["unexpected", "done"]
        assert found.dropped[urls[0]]["value"].startswith("ValueError in ipaddress.py line")


def test_a_run_that_is_stopped_judges_no_picture(collect, monkeypatch):
    monkeypatch.setattr(stage, "LEAVE", 0.1)
    with BadServer() as server:

        def stop():
            while not (found := multiprocessing.active_children()):
                time.sleep(0.01)
            os.kill(found[0].pid, signal.SIGINT)  # as a terminal does, to all of them
            os.kill(found[0].pid, signal.SIGSTOP)  # it is decoding, and never answers
            while not server.count["/ok/1.jpg"]:
                time.sleep(0.01)
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

        threading.Thread(target=stop, daemon=True).start()
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            with pytest.raises(KeyboardInterrupt):
                collect([server.url("/ok/1.jpg")], server)
        finally:
            signal.signal(signal.SIGINT, before)
        assert multiprocessing.active_children() == []
        assert collect([server.url("/ok/1.jpg")], server).dropped == {}


def test_a_host_without_answers_is_given_up(collect):
    with BadServer() as server, BadServer(robots=503, address="127.0.0.2") as broken:
        urls = [server.url(f"/drop/{i}") for i in range(6)] + [broken.url("/ok/1.jpg")]
        found = collect(urls, server, broken, threads=1, tries=1, silent_after=3)
        # The first three, too: with several threads chance says which rows are asked first.
        assert [found.reason(url) for url in urls] == ["host is silent"] * 6 + ["status"]
        assert {found.dropped[url]["value"] for url in urls[:6]} == {"connection"}
        assert len(server.asked) == 4 and broken.asked == ["/robots.txt"]
        assert found.dropped[urls[-1]]["value"] == "robots.txt: 503"


def test_who_refused_is_not_collected_and_removed(collect, tmp_path):
    with BadServer() as server:
        rows = [Row("Ann", server.url("/ok/1.jpg")), Row("Bob", server.url("/ok/2.jpg"))]
        before = collect([*rows, Row("Cy", rows[1].url)], server)
        refusals = tmp_path / "refused.txt"
        refusals.write_text("ann\nbob\n")
        server.asked.clear()
        rows.append(Row("Cy", rows[1].url))
        more = [*rows, Row("Ann", server.url("/ok/3.jpg"))]
        after = collect(more, server, refusals=str(refusals))
        assert server.asked == []
    assert [picture.identity for picture in read_pictures(after.work)] == ["Cy"]
    assert not (after.work / before.pictures[rows[0].url].path).exists()
    assert (after.work / before.pictures[rows[1].url].path).exists()  # Cy's, too
    assert {entry["reason"] for entry in after.dropped.values()} == {"refused by name"}


def test_what_purge_took_out_stays_out(collect):
    with BadServer() as server:
        rows = [Row("Ann", server.url("/ok/1.jpg")), Row("Bob", server.url("/ok/2.jpg"))]
        before = collect(rows, server)
        ann, bob = before.pictures.values()
        with Store(before.work, Measure()) as store:
            for picture in (ann, bob):
                store.add(Look(picture.key), np.zeros((0, 4), np.float32))
        purge(["--work", str(before.work), "--name", "ann"])
        # The same bytes under another name and address stay out, too.
        rows += [Row("Cy", server.url("/ok/1.jpg?again")), Row("Cy", server.url("/ok/3.jpg"))]
        server.asked.clear()
        after = collect(rows, server)
        assert "/ok/1.jpg" not in server.asked
    reasons = [after.reason(row.url) for row in rows]
    assert reasons == ["refused by name", "done", "refused by hash", "done"]
    assert not (after.work / ann.path).exists()

    # A list that somebody gives takes the measurements back as well.
    (after.work / "mine.txt").write_text("BOB\n")
    last = collect(rows[:2], server, refusals=str(after.work / "mine.txt"))
    assert last.pictures == {}
    with Store(last.work, Measure()) as store:
        assert store.known() == {}


def test_pictures_that_are_here_need_no_network(collect, tmp_path):
    photos = tmp_path / "photos"
    for name, data in [
        ("ann/1.jpg", turned()),
        ("ann/2.jpg", picture(1)[:300]),
        ("10_bob man/3.jpg", picture(3, "PNG")),
    ]:
        (photos / name).parent.mkdir(parents=True, exist_ok=True)
        (photos / name).write_bytes(data)
    found = read_rows(photos)
    got = collect(found.rows, places=found.places, contact="")
    pictures = {p.url: (p.identity, p.width, p.path[-4:]) for p in got.pictures.values()}
    assert pictures == {
        "file:photos/ann/1.jpg": ("ann", 12, ".jpg"),
        "file:photos/10_bob man/3.jpg": ("bob man", 24, ".png"),
    }
    assert got.reason("file:photos/ann/2.jpg") == "damaged"
    # Without a place, such an address is one of the many that are not asked.
    assert (
        collect(["file:photos/ann/1.jpg"], work="other").reason("file:photos/ann/1.jpg") == "scheme"
    )


def test_without_space_nothing_is_lost(collect):
    resource = pytest.importorskip("resource")
    with BadServer() as server:
        urls = [server.url("/page/1.jpg"), server.url("/ok/1.jpg")]
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (600, hard))  # bytes of a file
            with pytest.raises(DownloadError, match="no space left; make room and run it again"):
                collect(urls, server, threads=1)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        server.asked.clear()
        assert list(collect(urls, server).pictures) == [urls[1]]
        assert server.asked == ["/robots.txt", "/ok/1.jpg"]


def test_hosts_are_told_whom_to_write_to(collect):
    with pytest.raises(DownloadError, match="contact: .* give your mail address"):
        collect(["http://example.org/1.jpg"], contact="")
