"""Pictures per second of every stage after the download, with one and two processes.

    python -m benchmarks.collecting.stage_rates --out benchmarks/results/collecting_stage_rates.md

AT&T's photographs on their canvas. Measuring starts from nothing in each round, so it has the start
of the processes in it; ``--pictures`` says of how many. The processor's time is that of all
processes; other programs change it little, unlike the rates. The last table is on paper.
"""

import argparse
import dataclasses
import datetime
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.collecting.photographs import write_work
from benchmarks.machine import processor
from configs.collect.att import get_config
from data_pipeline.cli import command
from data_pipeline.collect.looking.measure import Measurer
from data_pipeline.collect.output import write_output
from data_pipeline.collect.records import PICTURES, Picture, write_json_lines
from data_pipeline.collect.running import local
from data_pipeline.collect.running.finish import CaptionWriter, Finisher, Job
from data_pipeline.collect.running.run import CHUNK, choose, light, measured, run_here
from data_pipeline.collect.settings import Collect
from data_pipeline.files import write_text
from persongen_jax.tables import markdown

ROWS, WORKERS = 10_000_000, 200  # of the estimate on paper
ALONE = ", in this process"  # the floor: without the start of another one, which is once
STAGES = (
    f"measure{ALONE}",
    "measure",
    "choose",
    f"crop{ALONE}",
    "crop",
    "caption (template)",
    "write",
)

Spent = np.ndarray  # [2]: seconds, and seconds of the processor


def clock() -> Spent:
    own, ended = (resource.getrusage(w) for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    cpu = own.ru_utime + own.ru_stime + ended.ru_utime + ended.ru_stime
    return np.array([time.perf_counter(), cpu])


def spent(settings: Collect, pictures: list[Picture]) -> dict[str, Spent]:
    """By stage; the work folder has no measurements yet."""
    found: dict[str, Spent] = {}
    options: dict[str, Any] = {"workers": settings.workers, "timeout": 600.0}

    def timed(name: str, begin: Spent) -> Spent:
        found[name] = clock() - begin
        return clock()

    items = [(p.key, str(Path(settings.work) / p.path)) for p in pictures]
    measurer = Measurer(settings.measure)
    measurer(items[:1])  # opens the networks
    begin = clock()
    measurer(items)
    begin = timed(f"measure{ALONE}", begin)
    measured(settings, pictures)
    begin = timed("measure", begin)
    chosen, _ = choose(settings, pictures)
    begin = timed("choose", begin)
    jobs = [Job(light(c), chosen.set_of(c)) for c in chosen.kept]
    with tempfile.TemporaryDirectory() as out:
        finisher = Finisher(settings, out)
        begin = clock()
        finisher(jobs)
        begin = timed(f"crop{ALONE}", begin)
        jobs = list(local.run(finisher, jobs, finisher.failed, size=CHUNK, **options))
        begin = timed("crop", begin)
        CaptionWriter(settings, out)(jobs)
        timed("caption (template)", begin)
    with tempfile.TemporaryDirectory() as out:
        curated = run_here(settings, pictures, Path(out))
        begin = clock()
        write_output(settings, curated, Path(out))
        timed("write", begin)
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
    rounds: dict[int, list[dict[str, Spent]]] = {1: [], 2: []}
    for _ in range(args.rounds):
        for workers, of_count in rounds.items():
            with tempfile.TemporaryDirectory() as folder:
                work = Path(folder) / "work"
                pictures = write_work(work)[: args.pictures]
                write_json_lines(work / PICTURES, pictures)
                out = str(Path(folder) / "out")
                settings = dataclasses.replace(
                    get_config(), work=str(work), out=out, workers=workers
                )
                of_count.append(spent(settings, pictures))
    rows, paper = [], []
    for stage in STAGES:
        # [workers, 2]: seconds of a picture, and the processor's
        each = np.array(
            [
                np.median([found[stage] for found in of_count], axis=0) / args.pictures
                for of_count in rounds.values()
            ]
        )
        rates = [f"{1 / seconds:.1f}" for seconds, _ in each]
        rows.append([stage, *rates, *(f"{1000 * cpu:.2f}" for _, cpu in each)])
        if f"{stage}{ALONE}" not in STAGES:
            hours = ROWS * each[0, 1] / 3600
            paper.append([stage.removesuffix(ALONE), f"{hours:.1f}", f"{hours / WORKERS:.2f}"])
    note = f" {args.note}" if args.note else ""
    heads = ["stage", "one process", "two", "ms of a processor, one process", "two"]
    text = f"""# Stages after the download: pictures per second

`python -m benchmarks.collecting.stage_rates`, {datetime.date.today()}, {processor()}, \
{args.pictures} pictures of AT&T, rounds in turns: {args.rounds}, their median.{note} \
*choose* is everything from the filter to the split, *write* manifests, report and card; both, and \
captions, are done in one process.

{markdown(heads, rows)}

## On paper

Hours = {ROWS:,} pictures × the processor's ms (in this process, where that was measured) / 3.6 \
million; on {WORKERS} workers \
of a core each divided by {WORKERS}, if nothing else bounds. *choose* and *write* are done in one \
process, so that their first column counts. Pictures of a megapixel take longer to decode and to \
detect in than these of 184 × 224.

{markdown(["stage", "hours of one core", f"hours on {WORKERS}"], paper)}
"""
    print(text)
    if args.out:
        write_text(args.out, text)


if __name__ == "__main__":
    main()
