"""What README.md shows first works as it stands there."""

import ast
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


def lines_of_python():
    (block,) = re.findall(r"^```python\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)
    return block


def test_what_the_lines_of_python_import_exists():
    tree = ast.parse(lines_of_python())
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    assert len(imports) >= 2
    exec(compile(ast.Module(imports, []), "README.md", "exec"), {})
    named = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    files = [name for name in named if str(name).startswith("persongen_jax/")]
    assert len(files) >= 2 and all((ROOT / name).exists() for name in files)


@pytest.mark.slow
def test_the_lines_of_python(tmp_path):
    block = lines_of_python()
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
