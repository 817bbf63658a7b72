"""From downloaded pictures to records with crops and captions, in this process and some others."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from data_pipeline.collect.captions.base import Captioner, Written
from data_pipeline.collect.choices import Choice, Drop
from data_pipeline.collect.looking.looks import Look
from data_pipeline.collect.looking.measure import Measurer
from data_pipeline.collect.looking.store import Store
from data_pipeline.collect.records import DROPPED, PICTURES, Dropped, Picture, read_pictures
from data_pipeline.collect.refused import read_refused
from data_pipeline.collect.running import local
from data_pipeline.collect.running.finish import CaptionWriter, Finisher, Job, record_of
from data_pipeline.collect.running.held import read_held
from data_pipeline.collect.running.stages import STAGES, Chosen, of_all, of_name
from data_pipeline.collect.settings import Collect, SettingsError
from data_pipeline.records.schema import Record
from data_pipeline.text_files import parse_json_lines, read_text

CHUNK = 8  # pictures that a process measures or cuts at once


@dataclass(eq=False)
class Curated:
    """What a run found: the records with their jobs in order, what was dropped, and the rest."""

    records: list[Record]
    jobs: list[Job]
    written: list[Written]
    drops: list[Drop]
    chosen: Chosen
    looks: dict[str, Look]
    pictures: list[Picture]
    dropped: list[Dropped] = field(default_factory=list)


def run_here(
    settings: Collect, pictures: list[Picture], partial: Path, captioner: Captioner | None = None
) -> Curated:
    """All stages in this process and ``settings.workers`` others.

    Args:
        captioner: the settings' one; None for the template.
    """
    chosen, looks = choose(settings, pictures)
    jobs = [Job(light(choice), chosen.set_of(choice)) for choice in chosen.kept]
    finisher = Finisher(settings, str(partial))
    cut = _progress(
        local.run(finisher, jobs, finisher.failed, size=CHUNK, **_processes(settings)),
        "cropping",
        len(jobs),
    )
    done = list(cut)
    writer = CaptionWriter(settings, str(partial), captioner, _opened=True)
    good, written = [], []
    total = sum(job.drop is None for job in done)
    with tqdm(None, "captions", total, disable=None, unit="pictures") as bar:
        for batch in batches(done, settings):
            good += batch
            written += writer(batch)
            bar.update(len(batch))
    return assembled(settings, pictures, partial, chosen, looks, done, good, written)


def assembled(
    settings: Collect,
    pictures: list[Picture],
    partial: Path,
    chosen: Chosen,
    looks: dict[str, Look],
    done: Sequence[Job],
    good: list[Job],
    written: list[Written],
) -> Curated:
    """What every executor ends with."""
    drops = [*chosen.drops, *(job.drop for job in done if job.drop is not None)]
    records = [record_of(j, w, settings, partial) for j, w in zip(good, written, strict=True)]
    return Curated(records, good, written, drops, chosen, looks, pictures)


def batches(jobs: Sequence[Job], settings: Collect) -> Iterator[list[Job]]:
    """Batches for the captioner, of pictures that were not dropped.

    They are cut from all jobs by number, so that no executor has others.
    """
    size = settings.caption.batch
    for start in range(0, len(jobs), size):
        batch = [job for job in jobs[start : start + size] if job.drop is None]
        if batch:
            yield batch


def choose(settings: Collect, pictures: Sequence[Picture]) -> tuple[Chosen, dict[str, Look]]:
    """Measure what is not known yet, and decide about every picture."""
    looks = measured(settings, pictures)
    refused = read_refused(settings.work)
    by_name = defaultdict(list)
    for choice in choices_of(pictures, looks):
        by_name[choice.picture.identity].append(choice)
    people = [of_name(name, own, settings, refused) for name, own in by_name.items()]
    chosen = of_all(people, settings, read_held(settings.work, settings.split))
    return chosen, {key: look for key, (look, _) in looks.items()}


def choices_of(
    pictures: Iterable[Picture], looks: dict[str, tuple[Look, np.ndarray]]
) -> Iterator[Choice]:
    for order, picture in enumerate(pictures):
        yield Choice(order, picture, *looks[picture.key])


def measured(settings: Collect, pictures: Sequence[Picture]) -> dict[str, tuple[Look, np.ndarray]]:
    """The measurements of all pictures by key, from the store where it has them."""
    with Store(settings.work, settings.measure) as store:
        known = store.known()
        missing = unknown(pictures, known, settings.work)
        function = Measurer(settings.measure)
        found = local.run(function, missing, function.failed, size=CHUNK, **_processes(settings))
        for look, embeddings in _progress(found, "measuring", len(missing)):
            if not look.fault:  # else the next run tries again
                store.add(look, embeddings)
            known[look.key] = look, embeddings
    return known


def unknown(pictures: Iterable[Picture], known: dict[str, Any], work: str) -> list[tuple[str, str]]:
    """(key, path) of pictures that are not measured, each once."""
    paths = {p.key: str(Path(work) / p.path) for p in pictures if p.key not in known}
    return list(paths.items())


def pictures_of(work: Path) -> list[Picture]:
    """The download's list.

    Raises:
        SettingsError: there is none, or it is empty.
    """
    try:
        found = read_pictures(work)
    except FileNotFoundError:
        raise SettingsError(f"work={str(work)!r}: no {PICTURES} there; download first") from None
    if not found:
        raise SettingsError(f"{work / PICTURES}: empty; {work / DROPPED} says why")
    return found


def earlier(work: Path) -> list[Dropped]:
    """What the stages before these dropped."""
    path = work / DROPPED
    lines = parse_json_lines(read_text(path), path) if path.is_file() else ()
    return [Dropped.from_json(e) for _, e in lines if e["stage"] not in STAGES[1:]]


def light(choice: Choice) -> Choice:
    """Without the embeddings, which nobody reads after this."""
    return choice.with_(embeddings=np.zeros((0, 0), np.float32))


def _processes(settings: Collect) -> dict[str, Any]:
    return {"workers": settings.workers, "timeout": settings.timeout}


def _progress(items: Iterable[Any], what: str, total: int) -> Iterable[Any]:
    return tqdm(items, what, total, disable=None, unit="pictures")
