"""Killed at random moments and started again: are its files those of a run that was left alone?

    python -m benchmarks.collecting.kills --out benchmarks/results/collecting_kills.md

First the download alone, then all stages (stage_kills.py). Ten downloads from the misbehaving
server of the tests are each killed once (SIGKILL) at a random moment of the time that an
undisturbed one takes, and started again; another is killed ten times in a row. All files but the
log of states, which holds a line per try, are compared byte by byte.
"""

import argparse
import csv
import datetime
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.collecting.stage_kills import section
from benchmarks.machine import processor
from data_pipeline.cli import command
from data_pipeline.files import write_text
from persongen_jax.tables import markdown
from tests.helpers.bad_server import BadServer

KILLS = 10
BAD = (
    "/status/404",
    "/status/503",
    "/page/1.jpg",
    "/truncated/1.jpg",
    "/bomb/1.png",
    "/drip/1.jpg",
)
BAD += (
    "/noai/1.jpg",
    "/private/1.jpg",
    "/loop/0",
    "/endless/1.jpg",
    "/busy/1.jpg",
    "/turned/1.jpg",
)
BAD += ("/to?url=http://169.254.169.254/", "/short/1.jpg")


def write_rows(file: Path, server: BadServer, pictures: int) -> int:
    """A list of good pictures with the bad ones among them; their number."""
    paths = [f"/ok/{i}.jpg" for i in range(pictures)] + list(BAD)
    random.Random(0).shuffle(paths)
    with open(file, "w", newline="") as out:
        table = csv.writer(out)
        table.writerow(["identity", "url"])
        table.writerows([f"person {i % 7}", server.url(path)] for i, path in enumerate(paths))
    return len(paths)


def start(rows: Path, server: BadServer, work: Path) -> subprocess.Popen:
    """The command, with short time-outs."""
    options = ["--contact", "benchmarks@example.org", "--allow", server.place]
    options += ["--interval", "0.01", "--per-host", "8", "--total-timeout", "1", "--tries", "2"]
    options += ["--backoff", "0.05", "--max-bytes", "500000", "--max-pixels", "1000000"]
    options += ["--decoders", "2", "--fixed-time", "2026-01-31T12:00:00Z", "--work", str(work)]
    return subprocess.Popen(
        [sys.executable, "-m", "data_pipeline.collect.download", str(rows), *options],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def to_the_end(rows: Path, server: BadServer, work: Path) -> float:
    """Seconds of a run that nobody disturbs."""
    begun = time.perf_counter()
    status = start(rows, server, work).wait()
    if status:
        raise ValueError(f"the download ended with status {status}")
    return time.perf_counter() - begun


def killed(rows: Path, server: BadServer, work: Path, after: float) -> int:
    """The number of rows that a run has finished when it is killed."""
    process = start(rows, server, work)
    time.sleep(after)
    process.send_signal(signal.SIGKILL)
    process.wait()
    state = work / "state.jsonl"
    return state.read_bytes().count(b"\n") if state.exists() else 0


def files_of(work: Path) -> dict[str, bytes]:
    """{path: bytes} of all but the log of states."""
    found = [path for path in sorted(work.rglob("*")) if path.is_file()]
    found = [path for path in found if path.name != "state.jsonl"]
    return {path.relative_to(work).as_posix(): path.read_bytes() for path in found}


@command
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pictures", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--note", default="", help="a sentence about the machine")
    args = parser.parse_args()
    said = f"`python -m benchmarks.collecting.kills`, {datetime.date.today()}, {processor()}."
    head = (
        f"# Collections that are killed and started again\n\n{said}{args.note and ' ' + args.note}"
    )
    sections = [of_download(args.pictures, args.seed), section(KILLS, args.seed)]
    write_text(args.out, "\n\n".join([head, *sections]))


def of_download(pictures: int, seed: int) -> str:
    """Downloads that are killed once each, and one that is killed ten times."""
    moments = random.Random(seed)
    table = []
    with (
        tempfile.TemporaryDirectory() as folder,
        BadServer(robots="User-agent: *\nDisallow: /private/\n", delay=0.02) as server,
    ):
        rows = Path(folder, "rows.csv")
        count = write_rows(rows, server, pictures)
        seconds = to_the_end(rows, server, Path(folder, "whole"))
        whole, asked = files_of(Path(folder, "whole")), len(server.asked)
        for trial in range(KILLS + 1):
            work, times = Path(folder, str(trial)), KILLS if trial == KILLS else 1
            server.asked.clear()
            server.count.clear()
            at, done = [], []
            for _ in range(times):
                at.append(moments.uniform(0, seconds if times == 1 else seconds / 2))
                done.append(killed(rows, server, work, at[-1]))
            to_the_end(rows, server, work)
            same = files_of(work) == whole
            shown = ", ".join(f"{value:.1f}" for value in at)
            finished = ", ".join(map(str, done))
            table.append([shown, finished, len(server.asked) - asked, "yes" if same else "NO"])
            print(table[-1], flush=True)
    head = ["killed after, s", f"rows finished then, of {count}", "requests more", "same bytes"]
    text = [
        "## The download",
        "",
        f"{pictures} small pictures and {len(BAD)} rows that misbehave, from a server on the "
        f"same machine; undisturbed it takes {seconds:.1f} s, with the start of the command. "
        f"Compared are {len(whole)} files: all pictures, pictures.jsonl, dropped.jsonl and "
        "download.json. Rows that may succeed another time (503, time-outs) are asked again by "
        "every start.",
        "",
        markdown(head, table),
    ]
    return "\n".join(text)


if __name__ == "__main__":
    main()
