"""The same stages as one pipeline on Apache Beam (extra ``beam``).

    pictures.jsonl, measured/ -> by key ─┬ new ──> measure ─┐
                                         └ known ───────────┴> by key -> by name -> of_name
              -> all -> of_all -> batches -> crop, mask -> caption -> files

Pixels stay on disk; what is grouped are keys, measurements and embeddings. The graph holds paths
alone; the workers read the lists, and need the work and the output folder under the same paths.
Networks open in the processes that the workers start, so that a decoder that crashes costs its
picture. The process that started it all then reads the files and puts them in order.
"""

import base64
import json
import pickle
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
from apache_beam.options.pipeline_options import PipelineOptions

from data_pipeline.collect.choices import Choice
from data_pipeline.collect.looking.looks import Look
from data_pipeline.collect.looking.measure import Measured, Measurer
from data_pipeline.collect.looking.store import (
    EMBEDDINGS,
    LOOKS,
    Store,
    decoded,
    encoded,
    lines_of_file,
)
from data_pipeline.collect.records import PICTURES, Picture
from data_pipeline.collect.refused import Refusals, read_refused
from data_pipeline.collect.running import local
from data_pipeline.collect.running.finish import CaptionWriter, Finisher, Job
from data_pipeline.collect.running.held import read_held
from data_pipeline.collect.running.run import CHUNK, Curated, assembled, light
from data_pipeline.collect.running.stages import Chosen, Named, of_all, of_name
from data_pipeline.collect.settings import Collect
from data_pipeline.collect.split import Held
from data_pipeline.text_files import parse_json

LOCAL = ("FnApiRunner", "DirectRunner")
TEMPORARY = ".beam"


def run_on_beam(
    settings: Collect,
    pictures: list[Picture],
    partial: Path,
    runner: str,
    options: Sequence[str] = (),
) -> Curated:
    """What run_here does, by a runner of Beam.

    Args:
        options: Beam's own; for a local runner ``settings.workers`` processes are the default.
    """
    given = [f"--runner={runner}", *options]
    if runner in LOCAL and not any("direct_" in option for option in options):
        given += ["--direct_running_mode=multi_processing"]
        given += [f"--direct_num_workers={max(1, settings.workers)}"]
    folder = partial / TEMPORARY
    folder.mkdir()
    with Store(settings.work, settings.measure) as store:
        new = secrets.token_hex(4)  # a file that no other run has
        with beam.Pipeline(options=PipelineOptions(given)) as pipeline:
            build(pipeline, settings, partial, store.folder, new)
        looks = {key: look for key, (look, _) in store.known().items()}
    (chosen,) = _read(folder, "chosen")
    jobs = {job.choice.order: job for job in _read(folder, "jobs")}
    answers = dict(_read(folder, "answers"))
    shutil.rmtree(folder)
    done = [jobs[choice.order] for choice in chosen.kept]
    good = [job for job in done if job.drop is None]
    found = [answers[job.choice.order] for job in good]
    CaptionWriter(settings, str(partial)).keep(found)
    written = [texts for _, _, texts in found]
    return assembled(settings, pictures, partial, chosen, looks, done, good, written)


def build(
    pipeline: Any,
    settings: Collect,
    partial: Path,
    store: Path,
    name: str,
) -> None:
    """The pipeline's graph.

    Args:
        store: where measurements are; new ones go into files with ``name``.
    """
    measurer, finisher = Measurer(settings.measure), Finisher(settings, str(partial))
    work = Path(settings.work)
    rows = (
        pipeline
        | "the list" >> beam.Create([str(work / PICTURES)])
        | "pictures" >> beam.FlatMap(_numbered)
        | "spread the list" >> beam.Reshuffle()
    )
    parts: dict[str, Any] = {"rows": rows}
    for kind in (LOOKS, EMBEDDINGS):  # the files of now: this run adds others
        files = [str(path) for path in sorted(store.glob(f"{kind}*.jsonl"))]
        lines = pipeline | f"files of {kind}" >> beam.Create(files)
        parts[kind] = lines | f"read {kind}" >> beam.FlatMap(_lines_by_key)
    joined = parts | "what is known" >> beam.CoGroupByKey()
    known = joined | "measured before" >> beam.FlatMap(_known)
    looked = (
        joined
        | "new pictures" >> beam.FlatMap(_unknown, work)
        | "spread pictures" >> beam.BatchElements(CHUNK, CHUNK)
        | "measure" >> beam.ParDo(Isolated(measurer, measurer.failed, settings.timeout))
    )
    good = looked | beam.Filter(lambda found: not found[0].fault)  # the next run tries again
    _write(good | beam.Map(_look_line), store / f"{LOOKS}-{name}")
    _write(good | beam.Map(_embedding_line), store / f"{EMBEDDINGS}-{name}")
    by_key = (looked, known) | beam.Flatten() | beam.Map(lambda found: (found[0].key, found))
    chosen = (
        {"looks": by_key, "rows": rows}
        | beam.CoGroupByKey()
        | "choices" >> beam.FlatMap(_choices)
        | "by name" >> beam.GroupByKey()
        | "one name" >> beam.Map(_one_name, settings, read_refused(settings.work))
        | "all names" >> beam.combiners.ToList()
        | "all of them" >> beam.Map(_all_names, settings, read_held(settings.work, settings.split))
    )
    _write(chosen | "the choice" >> beam.Map(_packed), partial / TEMPORARY / "chosen")
    done = (
        chosen
        | beam.FlatMap(_batches, settings.caption.batch)
        | "spread batches" >> beam.Reshuffle()
        | "crop" >> beam.ParDo(Isolated(finisher, finisher.failed, settings.timeout, whole=True))
    )
    each = done | beam.FlatMap(lambda batch: batch)
    _write(each | "the jobs" >> beam.Map(_packed), partial / TEMPORARY / "jobs")
    texts = done | "caption" >> beam.ParDo(Captions(settings, str(partial)))
    _write(texts | "the texts" >> beam.Map(_packed), partial / TEMPORARY / "answers")


class Isolated(beam.DoFn):
    """A function of lists in a process of its own, which may die.

    Args:
        failed: what stands for an item whose process died.
        whole: give a list's results as a list.
    """

    def __init__(
        self,
        function: Callable[[Sequence[Any]], list[Any]],
        failed: Callable[[Any, str], Any],
        timeout: float,
        whole: bool = False,
    ):
        self._function, self._failed = function, failed
        self._timeout, self._whole = timeout, whole
        self._worker: local.Worker | None = None

    def process(self, items: Sequence[Any]) -> Iterator[Any]:
        if self._worker is None:
            self._worker = local.Worker(self._function)
        results = local.ask(self._worker, items, self._failed, self._timeout)
        if self._whole:
            yield results
        else:
            yield from results

    def teardown(self) -> None:
        if self._worker is not None:
            self._worker.close()
            self._worker = None


class Captions(beam.DoFn):
    """(order, answer) of every job of a batch that was not dropped."""

    def __init__(self, settings: Collect, out: str):
        self._settings, self._out = settings, out

    def setup(self) -> None:
        self._writer = CaptionWriter(self._settings, self._out)

    def process(self, batch: Sequence[Job]) -> Iterator[Any]:
        jobs = [job for job in batch if job.drop is None]
        if jobs:
            for job, answer in zip(jobs, self._writer.answers(jobs), strict=True):
                yield job.choice.order, answer


def _numbered(path: str) -> Iterator[tuple[str, tuple[int, Picture]]]:
    """(key, (order, picture)) of a list's lines."""
    with open(path, encoding="utf-8") as file:
        for order, line in enumerate(file):
            picture = Picture.from_json(parse_json(line, path, order + 1))
            yield picture.key, (order, picture)


def _lines_by_key(path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for entry in lines_of_file(Path(path)):
        yield entry["key"], entry


def _known(found: tuple[str, dict[str, Iterable[Any]]]) -> Iterator[Measured]:
    """What is measured of a picture, once, if it is: Store.known of one key."""
    for look in found[1][LOOKS]:
        for entry in found[1][EMBEDDINGS]:
            if entry["shape"][0] == len(look["faces"]):
                yield Look.from_json(look), decoded(entry)
                return


def _unknown(found: tuple[str, dict[str, Iterable[Any]]], work: Path) -> Iterator[tuple[str, str]]:
    """(key, path) of a picture that is not measured, once."""
    for _, picture in found[1]["rows"]:
        if not any(_known(found)):
            yield picture.key, str(work / picture.path)
        return


def _choices(found: tuple[str, dict[str, Iterable[Any]]]) -> Iterator[tuple[str, Choice]]:
    looks, rows = list(found[1]["looks"]), found[1]["rows"]
    for order, picture in rows:  # none for a picture that is only measured
        look, embeddings = looks[0]
        yield picture.identity, Choice(order, picture, look, embeddings)


def _one_name(found: tuple[str, Iterable[Choice]], settings: Collect, refused: Refusals) -> Named:
    return of_name(found[0], found[1], settings, refused)


def _all_names(people: Iterable[Named], settings: Collect, before: Held) -> Chosen:
    chosen = of_all(people, settings, before)
    chosen.kept = [light(choice) for choice in chosen.kept]
    return chosen


def _batches(chosen: Chosen, size: int) -> Iterator[list[Job]]:
    jobs = [Job(choice, chosen.set_of(choice)) for choice in chosen.kept]
    yield from (jobs[i : i + size] for i in range(0, len(jobs), size))


def _look_line(found: Measured) -> str:
    return json.dumps(found[0].to_json())


def _embedding_line(found: Measured) -> str:
    return json.dumps(encoded(found[0].key, np.asarray(found[1])))


def _write(lines: Any, path: Path) -> None:
    name = path.name.partition("-")[0]
    lines | f"write {name}" >> beam.io.WriteToText(str(path), ".jsonl")


def _packed(value: Any) -> str:
    return f'"{base64.b64encode(pickle.dumps(value)).decode()}"'


def _read(folder: Path, name: str) -> Iterator[Any]:
    """Our own pickles, which the workers have just written."""
    for path in sorted(folder.glob(f"{name}*.jsonl")):
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                yield pickle.loads(base64.b64decode(parse_json(line, path, number)))
