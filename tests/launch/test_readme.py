"""What README.md shows first works as it stands there."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def test_it_is_short_and_its_commands_exist():
    assert len(TEXT.splitlines()) <= 150
    commands = re.findall(r"^    bash (\S+)$", TEXT, re.MULTILINE)
    assert commands == ["launch/main_job.sh", "launch/test.sh"]
    assert all((ROOT / command).is_file() for command in commands)


@pytest.mark.slow
def test_the_lines_of_python(tmp_path):
    (block,) = re.findall(r"^```python\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)
    (tmp_path / "persongen_jax").symlink_to(ROOT / "persongen_jax")
    done = subprocess.run(
        [sys.executable, "-c", block],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert np.asarray(Image.open(tmp_path / "person.png")).std() > 20
