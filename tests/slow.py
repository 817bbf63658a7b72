"""Run what the default run leaves out, folder by folder, and write how it ended.

    python -m tests.slow --work runs/slow_tests --out benchmarks/results/slow_tests.md

These are the tests marked ``slow``, and those that compare with a PyTorch class, with the class
itself instead of its stored output. A folder that has passed on this commit is not run again, so
that the command can be stopped.
"""

import argparse
import datetime
import json
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.machine import processor
from data_pipeline.files import write_text
from persongen_jax.tables import markdown

ROOT = Path(__file__).resolve().parents[1]
NONE = 5  # pytest's exit status where no test was chosen


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.slow", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--work", type=Path, default=Path("runs/slow_tests"), help="for the logs")
    parser.add_argument("--out", type=Path, help="a Markdown file for the summary lines")
    args = parser.parse_args(argv)
    args.work.mkdir(parents=True, exist_ok=True)
    git = ["git", "-C", str(ROOT)]
    commit = subprocess.check_output([*git, "rev-parse", "--short=12", "HEAD"], text=True).strip()
    if subprocess.check_output([*git, "status", "--porcelain", "-uno"], text=True):
        commit += " and changes"
    found = [run(part, commit, args.work) for part in parts()]
    rows = [[one["part"], one["seconds"], one["line"], one["commit"]] for one in found if one]
    text = (
        "# Slow tests\n\n"
        f"`python -m tests.slow`, {datetime.date.today()}, {processor()}, one process.\n\n"
        + markdown(["tests", "seconds", "pytest's summary", "commit"], rows)
        + "\n"
    )
    print(text)
    if args.out:
        write_text(args.out, text)
    return int(any(one["status"] for one in found if one))


def parts() -> list[str]:
    """The folders of tests, and the modules that lie in none."""
    tests = ROOT / "tests"
    folders = [path for path in tests.iterdir() if any(path.rglob("test_*.py"))]
    return [f"tests/{path.name}" for path in sorted(folders)] + [
        f"tests/{path.name}" for path in sorted(tests.glob("test_*.py"))
    ]


def run(part: str, commit: str, work: Path) -> dict | None:
    """How the slow tests of a folder ended; None if it has none."""
    name = part.replace("/", "-")
    file, log = work / f"{name}.json", work / f"{name}.log"
    if file.exists():
        known = json.loads(file.read_text())
        if known["commit"] == commit and not known["status"]:
            return known
    start = time.monotonic()
    with open(log, "w") as out:
        command = [sys.executable, "-m", "pytest", "--only-slow", part]
        status = subprocess.run(command, cwd=ROOT, stdout=out, stderr=subprocess.STDOUT).returncode
    if status == NONE:
        return None
    lines = [line for line in log.read_text().splitlines() if line.startswith("===")]
    found = {
        "part": part,
        "commit": commit,
        "status": status,
        "seconds": f"{time.monotonic() - start:.0f}",
        "line": lines[-1].strip("= ") if lines else f"ended with {status}: see {log}",
    }
    print(f"{part}: {found['line']}", flush=True)
    write_text(file, json.dumps(found) + "\n")
    return found


if __name__ == "__main__":
    sys.exit(main())
