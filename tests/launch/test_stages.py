"""launch/stages.sh with a stand-in for Python: what each stage is given, and when it goes on."""

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "launch" / "stages.sh"


@pytest.fixture
def stages(tmp_path):
    """A function of the script's arguments: (exit status, its errors, the calls of Python)."""
    for name in ("one.py", "two.py", "other/one.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    python = tmp_path / "python.sh"
    python.write_text(
        '#!/usr/bin/env bash\necho "$*" >> calls\n'
        # What the training does when it is stopped: it saves, and ends with this status.
        '[[ "$*" != *stopped* ]] || exit "${PERSONGEN_UNFINISHED_STATUS:-0}"\n'
    )
    python.chmod(0o755)

    def run(*arguments):
        done = subprocess.run(
            ["bash", SCRIPT, *arguments],
            cwd=tmp_path,
            env={**os.environ, "PYTHON": str(python)},
            capture_output=True,
            text=True,
            timeout=60,
        )
        calls = tmp_path / "calls"
        lines = calls.read_text().splitlines() if calls.exists() else []
        return done.returncode, done.stderr, lines

    return run


def test_each_stage_starts_from_the_one_before(stages):
    status, _, calls = stages("runs", "one.py", "two.py", "--", "--config.base=a b")
    train = "-m persongen_jax.train --config"
    assert status == 0 and calls == [
        f"{train} one.py --workdir runs/one --config.base=a b",
        f"{train} two.py --workdir runs/two --config.start_from=runs/one --config.base=a b",
    ]


def test_a_stopped_stage_ends_the_script(stages):
    status, _, calls = stages("runs", "one.py", "two.py", "--", "--config.note=stopped")
    assert status == 75 and len(calls) == 1


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], "give the folder of the runs first"),
        (["--help"], "give the folder of the runs first"),
        (["runs"], "give the config of each stage after runs"),
        (["runs", "--", "--config.steps=2"], "give the config of each stage after runs"),
        (["runs", "one.py", "--config.steps=2"], "the training's options go after --"),
        (["runs", "one.py", "three.py"], "three.py: there is no such config"),
        (["runs", "one.py", "other/one.py"], "an earlier stage trains in runs/one already"),
        (["runs", "one.py", "--", "--workdir=x"], "--workdir=x: each stage has its own"),
    ],
)
def test_wrong_arguments_are_named_before_anything_trains(arguments, named, stages):
    status, errors, calls = stages(*arguments)
    assert status == 2 and named in errors and not calls
