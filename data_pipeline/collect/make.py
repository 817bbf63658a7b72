"""Makes the whole data set: pictures and settings in, an output folder out.

Everything in that folder follows from pictures.jsonl, the measurements and the settings; neither
the dates of a run nor the number of workers leave a trace in it.
"""

import json
import shutil
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

from data_pipeline.collect.captions.opening import open_captioner
from data_pipeline.collect.looking.measure import check_networks
from data_pipeline.collect.mask import open_masks
from data_pipeline.collect.output import REPORT, write_output
from data_pipeline.collect.records import DROPPED, MERGED, Picture, write_json_lines
from data_pipeline.collect.refused import read_refused
from data_pipeline.collect.running.held import keep_held
from data_pipeline.collect.running.local import PROCESS_FAULTS
from data_pipeline.collect.running.run import Curated, earlier, pictures_of, run_here
from data_pipeline.collect.running.stages import sorted_drops
from data_pipeline.collect.settings import Collect, SettingsError
from data_pipeline.collect.split import unmatched
from data_pipeline.files import write_text

MOST_FAILED = 0.5  # share of the pictures


class ProcessesError(RuntimeError):
    """Most pictures failed for a reason that is not theirs; the message has it."""


def collect(settings: Collect, runner: str = "none", options: Sequence[str] = ()) -> Curated:
    """Run all stages after the download and write ``settings.out``.

    Args:
        runner: "none", or one of Beam's. options: of Beam.

    Raises:
        SettingsError: nothing to do, or an output folder that is somebody else's.
        ProcessesError: most pictures failed by errors or dead processes.
        OSError, ImportError, ValueError: with the remedy.
    """
    work, out = Path(settings.work), Path(settings.out)
    pictures = pictures_of(work)
    check_networks(settings.measure)
    captioner = open_captioner(settings.caption)  # both before the work of hours
    if settings.mask.model:
        open_masks(settings.mask.model)
    check_out(out)
    notes = notes_of(pictures, settings)
    for note in notes:
        print(note, file=sys.stderr)
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    if runner == "none":
        curated = run_here(settings, pictures, partial, captioner)
    else:
        try:
            from data_pipeline.collect.running.beam import run_on_beam
        except ModuleNotFoundError as error:
            if not (error.name or "").startswith("apache_beam"):
                raise
            raise ImportError(
                f"--runner {runner} needs Apache Beam: pip install 'persongen_jax[beam]'; "
                "--runner none does the same without it"
            ) from error

        del captioner  # its workers open their own
        curated = run_on_beam(settings, pictures, partial, runner, options)
    check_processes(curated)
    curated.dropped = [*earlier(work), *(d.dropped() for d in sorted_drops(curated.drops))]
    write_json_lines(work / DROPPED, curated.dropped)
    merged = json.dumps(curated.chosen.merged, ensure_ascii=False)
    write_text(work / MERGED, merged + "\n")  # ``purge`` follows them
    write_output(settings, curated, partial)
    keep_held(work, curated.chosen, settings.split)
    old = out.with_name(out.name + ".old")  # so that no kill leaves neither
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        out.replace(old)
    partial.replace(out)
    shutil.rmtree(old, ignore_errors=True)
    return curated


def notes_of(pictures: Sequence[Picture], settings: Collect) -> list[str]:
    """What would otherwise have no effect in silence."""
    notes = [
        f"split.out_of_domain: {name!r} is the origin of no picture; give a host or a value of "
        "the column origin"
        for name in unmatched(pictures, settings.split)
    ]
    other = read_refused(settings.work).of_others(settings.measure.recogniser)
    return [*notes, *([other] if other else [])]


def check_processes(curated: Curated) -> None:
    """ProcessesError if most pictures failed by an error or a dead process, which then is not
    theirs."""
    stages = (("filter", len(curated.pictures)), ("crop", len(curated.chosen.kept)))
    for stage, total in stages:
        values = [str(drop.value) for drop in curated.drops if drop.stage == stage]
        failed = [value for value in values if value.startswith(PROCESS_FAULTS)]
        if len(failed) > MOST_FAILED * total:
            raise ProcessesError(
                f"{stage}: {len(failed)} of {total} pictures failed, such as by: {failed[0]}; "
                "that is not the pictures' fault: the set was not written, the old one stays"
            )


def check_out(out: Path) -> None:
    """SettingsError if ``out`` holds what no run wrote."""
    if not out.name:
        raise SettingsError("out is empty; give a folder to write")
    if out.exists() and not (out / REPORT).is_file() and any(out.iterdir()):
        raise SettingsError(
            f"out={str(out)!r}: holds files that no run wrote ({REPORT} is missing); choose "
            "another folder"
        )


def lines_of(curated: Curated, settings: Collect) -> list[str]:
    """What a run says at its end."""
    sets = Counter(job.set for job in curated.jobs)
    people = defaultdict(set)
    for job in curated.jobs:
        people[job.set].add(job.choice.identity)
    lines = [f"{settings.out}: {len(curated.jobs)} of {len(curated.pictures)} pictures"]
    lines += [f"  {name}: {n} pictures of {len(people[name])} people" for name, n in sets.items()]
    reasons = Counter((drop.stage, drop.reason) for drop in curated.dropped)
    lines += [f"  dropped, {stage}: {why}: {n}" for (stage, why), n in reasons.items()]
    shown = ", ".join(f"{rule} {n}" for rule, n in curated.chosen.rules.items())
    lines.append(f"  verification would drop: {shown} (used: {settings.verify.rule})")
    lines += [f"  one person: {a} and {b} ({cosine})" for a, b, cosine in curated.chosen.merged]
    return lines
