"""Pictures per second of every stage after the download, with one and two processes.

    python -m benchmarks.collecting.stage_rates --out benchmarks/results/collecting_rates.md

AT&T's photographs on their canvas. Measuring starts from nothing in each round, so it has the start
of the processes in it; ``--pictures`` says of how many. The last table is on paper.
"""

import argparse
import dataclasses
import datetime
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.collecting.photographs import write_work
from benchmarks.machine import processor
from configs.collect.att import get_config
from data_pipeline.cli import command
from data_pipeline.collect.make import collect
from data_pipeline.collect.records import PICTURES, Picture, write_json_lines
from data_pipeline.collect.running import local
from data_pipeline.collect.running.finish import CaptionWriter, Finisher, Job
from data_pipeline.collect.running.run import CHUNK, choose, light, measured
from data_pipeline.collect.settings import Collect
from data_pipeline.files import write_text
from persongen_jax.tables import markdown

ROWS, WORKERS = 10_000_000, 200  # of the estimate on paper
STAGES = ("measure", "choose", "crop", "caption (template)", "write")


def seconds(settings: Collect, pictures: list[Picture]) -> dict[str, float]:
    """By stage; the work folder has no measurements yet."""
    found: dict[str, float] = {}
    options: dict[str, Any] = {"workers": settings.workers, "timeout": 600.0}

    def timed(name: str, begin: float) -> float:
        found[name] = time.perf_counter() - begin
        return time.perf_counter()

    begin = time.perf_counter()
    measured(settings, pictures)
    begin = timed("measure", begin)
    chosen, _ = choose(settings, pictures)
    begin = timed("choose", begin)
    jobs = [Job(light(c), chosen.set_of(c)) for c in chosen.kept]
    with tempfile.TemporaryDirectory() as out:
        finisher = Finisher(settings, out)
        jobs = list(local.run(finisher, jobs, finisher.failed, size=CHUNK, **options))
        begin = timed("crop", begin)
        CaptionWriter(settings, out)(jobs)
        timed("caption (template)", begin)
    begin = time.perf_counter()
    collect(settings)
    whole = time.perf_counter() - begin
    found["write"] = max(whole - found["choose"] - found["crop"] - found["caption (template)"], 0)
    return found


@command
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--out", type=Path, metavar="FILE")
    parser.add_argument("--pictures", type=int, default=400, help="at most 400 (default)")
    parser.add_argument("--rounds", type=int, default=3, help="in turns; default: 3")
    parser.add_argument("--note", default="", help="a sentence about the machine")
    args = parser.parse_args(argv)
    rates: dict[int, dict[str, list[float]]] = {n: {s: [] for s in STAGES} for n in (1, 2)}
    for _ in range(args.rounds):
        for workers, of_stage in rates.items():
            with tempfile.TemporaryDirectory() as folder:
                work = Path(folder) / "work"
                pictures = write_work(work)[: args.pictures]
                write_json_lines(work / PICTURES, pictures)
                out = str(Path(folder) / "out")
                settings = dataclasses.replace(
                    get_config(), work=str(work), out=out, workers=workers
                )
                for stage, spent in seconds(settings, pictures).items():
                    of_stage[stage].append(len(pictures) / spent)
    rows, paper = [], []
    for stage in STAGES:
        one, two = (statistics.median(rates[n][stage]) for n in (1, 2))
        rows.append([stage, f"{one:.1f}", f"{two:.1f}", f"{two / one:.2f}"])
        paper.append([stage, f"{ROWS / one / 3600:.0f}", f"{ROWS / one / WORKERS / 3600:.1f}"])
    note = f" {args.note}" if args.note else ""
    text = f"""# Stages after the download: pictures per second

`python -m benchmarks.collecting.stage_rates`, {datetime.date.today()}, {processor()}, \
{args.pictures} pictures of AT&T, median of {args.rounds} rounds in turns.{note} *choose* is \
everything from the filter to the split, *write* manifests, report and card; both, and captions, \
are done in one process.

{markdown(["stage", "one process", "two", "ratio"], rows)}

## On paper

From the rates of one process: {ROWS:,} pictures, in hours of one process, and on {WORKERS} of \
them if nothing else bounds. Pictures of a megapixel take longer to decode than these of 184 × 224.

{markdown(["stage", "process hours", f"hours on {WORKERS}"], paper)}
"""
    print(text)
    if args.out:
        write_text(args.out, text)


if __name__ == "__main__":
    main()
