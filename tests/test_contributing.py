"""What CONTRIBUTING.md says of adding a metric and a weight format works as it stands there."""

import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FORMATS = "persongen_jax/weights/formats"
KINDS = "persongen_jax/weights/recognition/kinds.py"
IMPORTING = "persongen_jax/convert/importing.py"
# Where each block goes, in their order: a new file, or (a file, the line that it follows).
PLACES = (
    "persongen_jax/metrics/images/brightness.py",
    ("persongen_jax/metrics/registry.py", '    "recall_attributes": f"{_HERE}.sets'),
    "tests/metrics/images/test_brightness.py",
    (KINDS, "NAMES = {"),
    f"{FORMATS}/arcface_training.py",
    (IMPORTING, "        writer = _import_arcface"),
    "tests/weights/formats/test_arcface_training.py",
    ("tests/convert/test_identify.py", "FILES = {"),
)
# What the text says in words: (file, was, is).
SAID = (
    (IMPORTING, "import shutil\n", "import functools\nimport shutil\n"),
    (IMPORTING, 'NO_BASE = ("arcface", ', 'NO_BASE = ("arcface", "arcface-training", '),
    (
        IMPORTING,
        "arcface import open_arcface\n",
        "arcface import open_arcface\n"
        "from persongen_jax.weights.formats.arcface_training import open_arcface_training\n",
    ),
)


def insert(path, after, text):
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    (place,) = [i for i, line in enumerate(lines) if line.startswith(after)]
    path.write_text("".join([*lines[: place + 1], text, *lines[place + 1 :]]), encoding="utf-8")


def blocks():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    found = re.findall(r"^    ```python\n(.*?)^    ```$", text, re.DOTALL | re.MULTILINE)
    return [textwrap.dedent(block) for block in found]


def test_the_examples_have_their_places():
    for place, block in zip(PLACES, blocks(), strict=True):
        if isinstance(place, str):
            assert not (ROOT / place).exists()
            compile(block, place, "exec")
        else:
            lines = (ROOT / place[0]).read_text(encoding="utf-8").splitlines()
            assert len([line for line in lines if line.startswith(place[1])]) == 1, place
    for name, was, _ in SAID:
        assert (ROOT / name).read_text(encoding="utf-8").count(was) == 1, (name, was)


@pytest.mark.slow
def test_the_examples_work(tmp_path):
    for name in ("persongen_jax", "data_pipeline", "configs", "tests"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for place, block in zip(PLACES, blocks(), strict=True):
        if isinstance(place, str):
            (tmp_path / place).write_text(block, encoding="utf-8")
        elif "_RULES" in block:
            name, rule = block.splitlines(keepends=True)
            insert(tmp_path / place[0], place[1], name)
            insert(tmp_path / place[0], "_RULES = (", rule)
        else:
            insert(tmp_path / place[0], place[1], textwrap.indent(block, "    "))
    for name, was, now in SAID:
        path = tmp_path / name
        content = path.read_text(encoding="utf-8")
        assert content.count(was) == 1, (name, was)
        path.write_text(content.replace(was, now), encoding="utf-8")

    files = ("metrics/images/test_brightness", "metrics/test_registry")
    files += ("weights/formats/test_arcface_training", "convert/test_identify")
    names = [f"tests/{name}.py" for name in files]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *names],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert re.search(r"\d{2} passed", done.stdout), done.stdout[-3000:]
