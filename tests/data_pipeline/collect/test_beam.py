"""Apache Beam writes the same bytes as no Beam, with several processes, also where one dies."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.collect.make import collect
from data_pipeline.collect.settings import Collect, Crop, Filter, Measure, Output, Split
from tests.data_pipeline.collect.made import att_pictures, write_work

pytestmark = pytest.mark.slow
pytest.importorskip("apache_beam", reason="pip install 'persongen_jax[beam]'")


def files_of(folder):
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def rows():
    found = [
        (f"person {person}", image, {})
        for person in range(1, 5)
        for image in att_pictures(person, range(1, 5))
    ]
    (stranger,) = att_pictures(9, [1])
    fatal = np.full((224, 184, 3), 255, np.uint8)  # which ends the process that measures it
    return [*found, ("person 1", stranger, {}), ("person 2", fatal, {})]


def test_the_graph_does_not_grow_with_the_list(tmp_path):
    import apache_beam as beam

    from data_pipeline.collect.running.beam import build

    noise, sizes = np.random.default_rng(0).integers(0, 255, (40, 8, 8, 3), np.uint8), []
    for name, count in (("1", 1), ("2", 40)):
        write_work(tmp_path / name, [("ann", image, {}) for image in noise[:count]])
        pipeline = beam.Pipeline(runner="FnApiRunner")
        settings = Collect(work=str(tmp_path / name))
        build(pipeline, settings, tmp_path / "partial", tmp_path / "measured", "0")
        sizes.append(pipeline.to_runner_api().ByteSize())
    assert abs(sizes[1] - sizes[0]) < 1000 < sizes[0]


def test_the_same_bytes_as_without_beam(tmp_path):
    for name in ("here", "beam"):
        write_work(tmp_path / name / "work", rows())
    settings = Collect(
        workers=2,
        timeout=60,
        measure=Measure(scores=("tests.data_pipeline.collect.crashing:fatal_white",)),
        filter=Filter(min_side=90, min_face=30),
        crop=Crop(format="png"),
        split=Split(in_train=1, out_of_train=1),
        output=Output(webdataset=True),
    )
    for name, runner in (("here", "none"), ("beam", "FnApiRunner")):
        folder = tmp_path / name
        curated = collect(
            replace(settings, work=str(folder / "work"), out=str(folder / "out")), runner
        )
        assert any("SIGSEGV" in str(drop.value) for drop in curated.dropped)
    one, other = (files_of(tmp_path / name / "out") for name in ("here", "beam"))
    assert one.keys() == other.keys()
    assert [name for name in one if one[name] != other[name]] == []

    # What Beam measured serves a run without it.
    measured = sorted((tmp_path / "beam" / "work" / "measured").rglob("looks-*.jsonl"))
    assert sum(len(path.read_text().splitlines()) for path in measured) == len(rows()) - 1
    again = replace(
        settings, work=str(tmp_path / "beam" / "work"), out=str(tmp_path / "again"), workers=1
    )
    collect(again)
    assert files_of(tmp_path / "again") == one
    assert Path(again.out).is_dir()
