"""What headers, robots.txt and the list of refusals say."""

import time

import pytest

from data_pipeline.collect.download.network.addresses import read_target
from data_pipeline.collect.download.network.fetch import retry_after
from data_pipeline.collect.download.network.optout import opted_out
from data_pipeline.collect.download.network.robots import Robots, parse_robots
from data_pipeline.collect.download.outcomes import Refused, bad_status
from data_pipeline.collect.download_settings import DownloadSettings
from data_pipeline.collect.refused import read_refused


@pytest.mark.parametrize(
    "headers, said",
    [
        ({"X-Robots-Tag": "noai"}, "x-robots-tag: noai"),
        ({"x-robots-tag": "nofollow, NoImageAI"}, "x-robots-tag: noimageai"),
        ({"X-Robots-Tag": "noml"}, "x-robots-tag: noml"),
        ({"X-Robots-Tag": "none"}, "x-robots-tag: none"),
        ({"X-Robots-Tag": "noindex"}, "x-robots-tag: noindex"),
        ({"X-Robots-Tag": "noimageindex"}, "x-robots-tag: noimageindex"),
        ({"X-Robots-Tag": "persongen_jax: noai"}, "x-robots-tag: noai"),
        ({"X-Robots-Tag": "otherbot: nofollow, persongen_jax: noai"}, "x-robots-tag: noai"),
        ({"X-Robots-Tag": "otherbot: noai, noindex"}, ""),
        ({"X-Robots-Tag": "max-snippet: 3, noai"}, "x-robots-tag: noai"),
        (
            {"X-Robots-Tag": "unavailable_after: Fri, 25 Jun 2010 15:00:00 GMT, noai"},
            "x-robots-tag: noai",
        ),
        ({"X-Robots-Tag": "unavailable_after: 2010-06-25T15:00:00Z, noai"}, "x-robots-tag: noai"),
        ({"X-Robots-Tag": "otherbot: unavailable_after: Fri, 25 Jun 2010 15:00 GMT, noai"}, ""),
        ({"X-Robots-Tag": "nofollow, noarchive"}, ""),
        ({"TDM-Reservation": "1"}, "tdm-reservation: 1"),
        ({"tdm-reservation": "0"}, ""),
        ({"Content-Type": "image/noai"}, ""),
    ],
)
def test_opt_out_headers(headers, said):
    assert opted_out(headers.items(), "persongen_jax") == said


def test_robots_txt():
    rules = parse_robots(
        b"\xef\xbb\xbfUser-agent: *\nDisallow: /private/\nAllow: /private/open/\nCrawl-delay: 7\n"
        b"User-agent: otherbot\nDisallow: /\n"
    )
    robots = Robots(rules)
    robots.check(read_target("http://example.org/a.jpg"))
    robots.check(read_target("http://example.org/private/open/a.jpg"))
    with pytest.raises(Refused, match="robots.txt"):
        robots.check(read_target("http://example.org/private/a.jpg?size=1"))
    assert robots.interval == 7 and not robots.stale
    ours = Robots(parse_robots(b"User-agent: persongen_jax\nDisallow: /\n"))
    with pytest.raises(Refused):
        ours.check(read_target("http://example.org/a.jpg"))
    Robots().check(read_target("http://example.org/private/a.jpg"))
    # Years are not waited for.
    assert Robots(parse_robots(b"User-agent: *\nCrawl-delay: 99999999\n")).interval == 60


def test_retry_after():
    assert retry_after("17") == 17 and retry_after("-3") == 0 and retry_after(None) is None
    assert retry_after("soon") is None and retry_after("9" * 400) == 10**9
    assert retry_after("Sat, 01 Jan 99999999999 00:00:00 GMT") is None
    date = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 100))
    assert 90 < retry_after(date) <= 100


def test_which_statuses_are_tried_again():
    again = [status for status in range(300, 600) if bad_status(status).again]
    assert again == [408, 425, 429, *range(500, 600)]


def test_refusals(tmp_path):
    file = tmp_path / "refused.txt"
    file.write_text(f"# who asked\n\nAnn  Smith\nhttps://a.org/1.jpg\n{'AB' * 32}\nfile:x/1.jpg\n")
    found = read_refused(tmp_path / "work", file)
    assert found.of_picture("ann smith", "https://b.org/") == "refused by name"
    assert found.of_picture("bob", "https://a.org/1.jpg") == "refused by address"
    assert found.of_picture("bob", "file:x/1.jpg") == "refused by address"
    assert found.of_picture("bob", "u", "", "ab" * 32) == "refused by hash"
    assert found.of_picture("bob", "https://a.org/2.jpg", "", "cd" * 32) == ""
    (tmp_path / "empty").mkdir()
    assert read_refused(tmp_path / "empty").of_picture("ann smith", "u", "") == ""
    assert read_refused(tmp_path).of_picture("Ann Smith", "u") == "refused by name"


def test_who_asks():
    said = DownloadSettings(contact="me@example.org").user_agent
    assert said.startswith("persongen_jax/") and "+me@example.org" in said


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"threads": 0}, "threads=0"),
        ({"total_timeout": 0}, "total_timeout=0"),
        ({"interval": float("nan")}, "interval=nan"),
        ({"max_pixels": 10**9}, "max_pixels=1000000000"),
        ({"quality": 101}, "quality=101"),
        ({"contact": "me\r\nX-Evil: 1"}, "contact="),
        ({"allow": ("localhost:80",)}, "allow: 'localhost:80'"),
        ({"fixed_time": "today"}, "fixed_time='today'"),
    ],
)
def test_settings_that_cannot_be_used(settings, said):
    with pytest.raises(ValueError, match=said):
        DownloadSettings(**settings)
