"""A download from the misbehaving server, without long pauses."""

import json

import pytest

from data_pipeline.collect.download.stage import download
from data_pipeline.collect.download_settings import DownloadSettings
from data_pipeline.collect.records import Row

TIME = "2026-01-31T12:00:00Z"
QUICK = {
    "contact": "tests@example.org",
    "interval": 0,
    "per_host": 8,
    "connect_timeout": 60,  # a busy machine is no silent host
    "total_timeout": 60,
    "backoff": 0.01,
    "tries": 2,
    "max_bytes": 200_000,
    "max_pixels": 1_000_000,
    "silent_after": 1000,
    "decoders": 1,
    "fixed_time": TIME,
}


class Collected:
    """A work folder after a download: pictures by the ends of their addresses, and the others."""

    def __init__(self, work, pictures):
        self.work = work
        self.pictures = {picture.url: picture for picture in pictures}
        lines = (work / "dropped.jsonl").read_text().splitlines()
        self.dropped = {entry["url"]: entry for entry in map(json.loads, lines)}

    def reason(self, url):
        return self.dropped[url]["reason"] if url in self.dropped else "done"


@pytest.fixture
def collect(tmp_path):
    """collect(rows or URLs, servers that are allowed, work=…, settings…) -> Collected."""

    def run(rows, *servers, work="work", places=None, resolver=None, **settings):
        rows = [row if isinstance(row, Row) else Row("ann", row) for row in rows]
        allow = tuple(server.place for server in servers)
        given = DownloadSettings(**{**QUICK, "allow": allow, **settings})
        found = download(rows, given, tmp_path / work, places, resolver=resolver)
        return Collected(tmp_path / work, list(found))

    return run


def files_of(work):
    """{path: bytes} of all that two runs have to agree on."""
    names = [path for path in work.rglob("*") if path.is_file() and path.name != "state.jsonl"]
    return {path.relative_to(work).as_posix(): path.read_bytes() for path in names}
