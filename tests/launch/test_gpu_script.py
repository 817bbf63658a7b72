"""benchmarks/gpu.sh with stand-ins for Python and timeout: the limits, and what fails."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks/gpu.sh"


def run(folder, *parts, kernels=0, bench=0, spent=0):
    """(exit status, the calls as words); the stand-ins exit with these codes.

    ``spent``: the seconds that the script believes to have run.
    """
    (folder / "python").write_text(
        '#!/usr/bin/env bash\necho "$*" >> "$(dirname "$0")/calls"\n'
        f"case $2 in benchmarks.kernels) exit {kernels} ;; esac\n"
        'while [[ $1 != --out ]]; do shift; done\nmkdir -p "$2"\n'
        'echo the table > "$2/train.md"; echo a log > "$2/train_00.log"\n'
        f"exit {bench}\n"
    )
    (folder / "timeout").write_text(
        '#!/usr/bin/env bash\necho "timeout $1" >> "$(dirname "$0")/calls"\nshift\nexec "$@"\n'
    )
    for name in ("python", "timeout"):
        (folder / name).chmod(0o755)
    environment = {**os.environ, "PYTHON": str(folder / "python"), "OUT": str(folder / "out")}
    environment["SECONDS"] = str(spent)
    environment["PATH"] = f"{folder}:{os.environ['PATH']}"
    command = ["bash", SCRIPT, *parts]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    return done, [line.split() for line in (folder / "calls").read_text().splitlines()]


def test_all_of_it_ends_in_ten_minutes(tmp_path):
    done, calls = run(tmp_path)
    assert done.returncode == 0, done.stderr
    kernels = [int(call[1]) for call in calls if call[0] == "timeout"]
    assert len(kernels) == 1 and sum(kernels + limits(calls)) < 600
    assert "the table" in done.stdout
    files = {str(path.relative_to(tmp_path / "out")) for path in tmp_path.glob("out/*/*")}
    assert {"versus/train.md", "versus/logs.tar.gz"} <= files
    assert not any(name.endswith(".log") for name in files)


def test_what_is_late_is_cut_short(tmp_path):
    _, calls = run(tmp_path, "versus", "train", spent=400)
    first, second = limits(calls)
    assert 1 <= first <= 180 and second == 560  # a separate call


def limits(calls):
    return [int(call[call.index("--limit") + 1]) for call in calls if "--limit" in call]


def test_failures_are_reported_and_the_rest_continues(tmp_path):
    done, calls = run(tmp_path, kernels=1)
    assert done.returncode == 1 and done.stderr.strip().endswith("above: kernels")
    assert sum("persongen_jax.bench" in call for call in calls) == 2
    done, _ = run(tmp_path, "train", "settings", bench=1)
    assert done.returncode == 1 and done.stderr.strip().endswith("above: train settings")


def test_the_script_is_linted():
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    if shellcheck := shutil.which("shellcheck", path=path):
        found = subprocess.run([shellcheck, SCRIPT], capture_output=True, text=True)
        assert found.returncode == 0, found.stdout
