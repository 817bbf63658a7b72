"""docs/dependencies.md names every package that setup.py asks for, and no other."""

import re
import runpy
from pathlib import Path

import setuptools

ROOT = Path(__file__).parents[1]


def test_every_dependency_says_what_it_is_for(monkeypatch):
    given = {}
    monkeypatch.setattr(setuptools, "setup", given.update)
    runpy.run_path(str(ROOT / "setup.py"))
    asked = {*given["install_requires"], *sum(given["extras_require"].values(), [])}
    names = {re.match(r"[\w.-]+", line)[0] for line in asked}

    text = (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8")
    table = text.split("## What is installed")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `([\w.-]+)` \| [^|]+ \| [^|]+ \|$", table, re.MULTILINE)
    assert len(names) > 20 and sorted(rows) == sorted(names)
