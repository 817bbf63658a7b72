"""Makes the whole data set: pictures and settings in, an output folder out.

Everything in that folder follows from pictures.jsonl, the measurements and the settings; neither
the dates of a run nor the number of workers leave a trace in it.
"""

import shutil
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

from data_pipeline.collect.looking.measure import check_networks
from data_pipeline.collect.output import REPORT, write_output
from data_pipeline.collect.records import DROPPED, write_json_lines
from data_pipeline.collect.running.run import Curated, earlier, pictures_of, run_here
from data_pipeline.collect.running.stages import sorted_drops
from data_pipeline.collect.settings import Collect, SettingsError


def collect(settings: Collect, runner: str = "none", options: Sequence[str] = ()) -> Curated:
    """Run all stages after the download and write ``settings.out``.

    Args:
        runner: "none", or one of Beam's. options: of Beam.

    Raises:
        SettingsError: nothing to do, or an output folder that is somebody else's.
        OSError, ImportError, ValueError: with the remedy.
    """
    work, out = Path(settings.work), Path(settings.out)
    pictures = pictures_of(work)
    check_networks(settings.measure)
    check_out(out)
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    if runner == "none":
        curated = run_here(settings, pictures, partial)
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

        curated = run_on_beam(settings, pictures, partial, runner, options)
    curated.dropped = [*earlier(work), *(d.dropped() for d in sorted_drops(curated.drops))]
    write_json_lines(work / DROPPED, curated.dropped)
    write_output(settings, curated, partial)
    if out.exists():
        shutil.rmtree(out)
    partial.replace(out)
    return curated


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
