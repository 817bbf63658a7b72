"""The whole collection killed at random moments of every stage: part of kills.py.

Progress is read from the files that a run writes, so that a kill falls into the stage it is meant
for however busy the machine is: a random share of a stage's files or lines, then SIGKILL.
"""

import csv
import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image

from benchmarks.collecting.photographs import photographs
from data_pipeline.collect.captions.base import View
from data_pipeline.collect.records import CAPTIONS
from persongen_jax.tables import markdown
from tests.helpers.bad_server import BadServer

PEOPLE, EACH = 5, 4
TIME = "2026-01-31T12:00:00Z"
POLL = 0.002  # seconds between two looks at the files
CONFIG = "configs/collect/att.py"
IMAGES = ("images", "masks")


class Slow:
    """A captioner that takes its time, and answers by what a picture's key says."""

    name, revision, prompt = "slow", "1", "none"

    def ask(self, views: Sequence[View], seed: int) -> list[str]:
        time.sleep(0.2)
        parts = {"class_word": "person", "general": "a person", "background": "a black wall"}
        found = []
        for view in views:
            body = f"in a coat with the number {int(view.key[:8], 16)}"
            texts = {"caption": f"a person {body} before a black wall", "body": body}
            found.append(json.dumps(parts | texts))
        return found


slow = Slow()


@dataclasses.dataclass(frozen=True)
class Stage:
    """A name, and how much of it is done by the files of a work and an output folder."""

    name: str
    done: Callable[[Path, Path], int]


def _lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def _measured(work: Path, out: Path) -> int:
    return sum(_lines(path) for path in work.glob("measured/*/looks.jsonl"))


def _output(out: Path, images: bool) -> int:
    """Files below the unfinished output, images or all others; those of the finished one."""
    folder = partial if (partial := out.with_name(out.name + ".partial")).is_dir() else out
    count = 0
    for place, _, names in os.walk(folder):  # which does not mind that folders go
        of_images = not set(IMAGES).isdisjoint(Path(place).parts)
        whole = [name for name in names if not name.startswith(".")]
        count += len(whole) if of_images == images else 0
    return count


STAGES = (
    Stage("download", lambda work, out: _lines(work / "state.jsonl")),
    Stage("measure", _measured),
    Stage("crop", lambda work, out: _output(out, images=True)),
    Stage("caption", lambda work, out: _lines(work / CAPTIONS)),
    Stage("write", lambda work, out: _output(out, images=False)),
)


def command_of(rows: Path, server: BadServer, work: Path, out: Path) -> list[str]:
    keys = {
        "rows": rows,
        "download.contact": "benchmarks@example.org",
        "download.allow": (server.place,),
        "download.interval": 0.01,
        "download.per_host": 4,
        "download.total_timeout": 10,
        "download.tries": 2,
        "download.decoders": 1,
        "download.fixed_time": TIME,
        "caption.captioner": f"{__name__}:slow",
        "split.in_train": 1,
        "split.out_of_train": 1,
        "output.shards": True,
        "output.webdataset": True,
        "output.tar_size": 5,
    }
    words = [sys.executable, "-m", "data_pipeline.collect", "--config", CONFIG]
    words += ["--work", str(work), "--out", str(out), "--workers", "1"]
    return [*words, *(word for key, v in keys.items() for word in ("--set", f"{key}={v}"))]


def to_the_end(words: list[str]) -> None:
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"the run ended with status {done.returncode}:\n{done.stderr[-3000:]}")


def killed(words: list[str], stage: Stage, least: int, work: Path, out: Path) -> list[int]:
    """Starts a run and kills it when ``least`` of a stage is done; what was done of each then."""
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and stage.done(work, out) < least:
        time.sleep(POLL)
    process.send_signal(signal.SIGKILL)
    process.wait()
    return [stage.done(work, out) for stage in STAGES]


def files_of(work: Path, out: Path) -> dict[str, bytes]:
    """{path: bytes} of all but the log of states, which has a line per try."""
    found = [path for folder in (work, out) for path in sorted(folder.rglob("*"))]
    found = [path for path in found if path.is_file() and path.name != "state.jsonl"]
    return {str(path.relative_to(work.parent)): path.read_bytes() for path in found}


def write_rows(folder: Path, server: BadServer) -> Path:
    rows = [(f"Person {n}", server.url(f"/files/{n}/{k}.png")) for n, k in numbers()]
    rows += [("Person 1", server.url(path)) for path in ("/status/404", "/page/1", "/noai/1")]
    random.Random(0).shuffle(rows)
    with open(folder / "rows.csv", "w", newline="") as file:
        csv.writer(file).writerows([("identity", "url"), *rows])
    return folder / "rows.csv"


def numbers() -> list[tuple[int, int]]:
    return [(n, k) for n in range(1, PEOPLE + 1) for k in range(1, EACH + 1)]


def write_files(folder: Path) -> None:
    for person, number, pixels in photographs():
        if (person, number) in numbers():
            (folder / str(person)).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / str(person) / f"{number}.png")


def section(kills: int, seed: int) -> str:
    """A run that is killed equally often in every stage, one after another, and started again."""
    chance, table = random.Random(seed), []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_files(folder / "files")
        with BadServer(folder / "files") as server:
            rows = write_rows(folder, server)
            place = folder / "whole" / "work", folder / "whole" / "out"
            begun = time.perf_counter()
            to_the_end(command_of(rows, server, *place))
            seconds = time.perf_counter() - begun
            whole, total = files_of(*place), {s.name: s.done(*place) for s in STAGES}
            print(f"{seconds:.0f} s", total, flush=True)
            place = folder / "killed" / "work", folder / "killed" / "out"
            words = command_of(rows, server, *place)
            moments = {s.name: sorted(moments_of(total[s.name], kills, chance)) for s in STAGES}
            for stage in STAGES:
                for least in moments[stage.name]:
                    then = killed(words, stage, least, *place)
                    table.append([f"{stage.name} {least}", *map(str, then)])
                    print(table[-1], flush=True)
            to_the_end(words)
            ended = files_of(*place)
    other = [name for name in whole | ended if whole.get(name) != ended.get(name)]
    said = f"differ: {', '.join(other)}" if other else "are the same, byte by byte"
    counts = ", ".join(f"{name} {count}" for name, count in total.items())
    return f"""## All stages

Pictures of {PEOPLE} people of AT&T and three rows that fail, by `data_pipeline.collect` with a \
process that measures and one that decodes, a captioner that answers after 0.2 s, shards and tars; \
undisturbed it takes {seconds:.0f} s. Of the undisturbed run's {counts} (rows, pictures, crops, \
captions, other files) a random number is waited for, then the command is killed and started \
again, {len(table)} times. \
At the end all {len(whole)} files of the work and the output folder but the log of states {said}. \
Crops and what follows them are made anew by each start; downloads, measurements and captions are \
not.

{markdown(["killed at", *(f"{stage.name}, then" for stage in STAGES)], table)}
"""


def moments_of(total: int, kills: int, chance: random.Random) -> list[int]:
    return [chance.randint(1, total) for _ in range(kills // len(STAGES))]
