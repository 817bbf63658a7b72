"""The code to read to follow one step or one call stays short, and matches the docs."""

import json
import re
from pathlib import Path

import pytest

from benchmarks import walk

DOCS = Path(__file__).parents[2] / "docs" / "architecture.md"


def documented():
    """The files of the sections on a training step and on a generate call."""
    sections = re.split(r"^## One ", DOCS.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    sections[-1] = sections[-1].split("\n## ")[0]
    return [re.findall(r"^\| `([\w/]+\.py)` \|", s, re.MULTILINE) for s in sections]


def test_every_documented_file_exists_and_is_counted():
    for names in documented():
        assert 10 < len(names) <= walk.MOST and len(set(names)) == len(names)
        assert [name for name in names if not (DOCS.parents[1] / name).is_file()] == []
        assert not any(name.startswith(walk.LEFT_OUT) for name in names)


@pytest.mark.slow
def test_the_walk_is_short_and_documented(tmp_path):
    walk.main(["--json", str(tmp_path / "walk.json")])  # exits with an error above MOST
    lists = json.loads((tmp_path / "walk.json").read_text())
    for found, names in zip(documented(), lists.values(), strict=True):
        assert sorted(found) == names
