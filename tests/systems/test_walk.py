"""The code to read to follow one step or one call stays short, and matches the docs."""

import json
import re
from pathlib import Path

import pytest

from benchmarks import walk

DOCS = Path(__file__).parents[2] / "docs" / "architecture.md"


@pytest.mark.slow
def test_the_walk_is_short_and_documented(tmp_path):
    walk.main(["--json", str(tmp_path / "walk.json")])  # exits with an error above MOST
    lists = json.loads((tmp_path / "walk.json").read_text())
    sections = re.split(r"^## ", DOCS.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    for section, names in zip(sections, lists.values(), strict=True):
        assert sorted(re.findall(r"^\| `([\w/]+\.py)` \|", section, re.MULTILINE)) == names
