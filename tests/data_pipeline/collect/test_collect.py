"""All stages on AT&T's photographs: a data set, its report, a changed threshold, a purge."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_pipeline.collect.looking import measure
from data_pipeline.collect.make import collect
from data_pipeline.collect.output.tars import read_tar
from data_pipeline.collect.purge.__main__ import main as purge
from data_pipeline.collect.settings import (
    Collect,
    Crop,
    Filter,
    Output,
    SettingsError,
    Split,
    Verify,
)
from data_pipeline.records.manifest import read_manifest
from tests.data_pipeline.collect.made import att_pictures, write_work

PEOPLE = {"Ann": 1, "Bob": 2, "Cy": 3, "Annie": 1}  # Annie is Ann


def rows():
    """Four names, of which two are one person; a stranger, a copy, a black picture, no face."""
    found = []
    for name, person in PEOPLE.items():
        numbers = {"Ann": range(1, 6), "Annie": range(6, 10)}.get(name, range(1, 5))
        found += [(name, image, {}) for image in att_pictures(person, numbers)]
    found[1][2].update(consent="yes", caption="a man with glasses")
    (stranger,) = att_pictures(9, [1])
    small = np.asarray(Image.fromarray(found[0][1]).resize((152, 185)))
    noise = np.random.default_rng(0).integers(0, 255, (120, 120, 3), np.uint8)
    return [*found, ("Ann", stranger, {}), ("Ann", small, {}), ("Bob", noise, {})]


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("collect")
    write_work(folder / "work", rows())
    return Collect(
        work=str(folder / "work"),
        out=str(folder / "out"),
        workers=0,
        filter=Filter(min_side=90, min_face=30, min_sharpness=None),
        verify=Verify(merge=0.7),
        crop=Crop(format="png"),
        split=Split(in_train=1, out_of_train=1),
        output=Output(webdataset=True),
    )


@pytest.fixture(scope="module")
def curated(settings):
    return collect(settings)


def files_of(folder):
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def test_who_stays_and_why_others_go(curated, settings):
    reasons = {(d.reason, d.identity) for d in curated.dropped}
    assert ("another person", "Ann") in reasons and ("no face", "Bob") in reasons
    assert ("near copy", "Ann") in reasons
    assert {job.choice.identity for job in curated.jobs} == {"Ann", "Bob", "Cy"}
    assert curated.chosen.merged[0][:2] == ("Ann", "Annie")


def test_the_loader_reads_it(curated, settings):
    out = Path(settings.out)
    records = read_manifest(out / "train")
    record = records[0]
    assert record.caption.startswith("a black and white ") and " img" in record.caption
    image = np.asarray(Image.open(record.image))
    x0, y0, x1, y1 = record.face_box
    assert image.shape[0] == image.shape[1]
    assert (x1 - x0) * (y1 - y0) > 0.1 * image.shape[0] ** 2
    inside = [0 <= x <= image.shape[1] and 0 <= y <= image.shape[0] for x, y in record.landmarks]
    assert all(inside) and record.original_size == (224, 184)
    origin = record.extra["collected"]
    assert origin["captioner"] == "template" and origin["verification"] > 0.4
    held = read_manifest(out / "in_train", least=1)
    trained = {json.dumps(r.extra["collected"]["sha256"]) for r in records}
    assert len(held) == 1 and held[0].identity in {r.identity for r in records}
    assert json.dumps(held[0].extra["collected"]["sha256"]) not in trained


def test_report_card_and_tars(curated, settings):
    out = Path(settings.out)
    report = json.loads((out / "report.json").read_text())
    assert report["stages"][0]["in"] == report["pictures"] == len(rows())
    assert report["stages"][-1]["out"] == report["kept"] == len(curated.jobs)
    assert report["without_consent"]["pictures"] == report["kept"] - 1
    assert report["verification"]["would_drop"]["paper"] == 0
    page, card = (out / "report.html").read_text(), (out / "DATASET_CARD.md").read_text()
    assert "data:image/jpeg;base64," in page and 'src="http' not in page
    assert "another person 1" in card and "SFace" in card
    tar = next((out / "webdataset" / "train").glob("*.tar"))
    names = [name for name, _ in read_tar(tar)]
    assert [name.rpartition(".")[2] for name in names[:3]] == ["png", "txt", "json"]


def test_a_changed_threshold_measures_nothing_again_and_back_gives_the_same_bytes(
    curated, settings, monkeypatch
):
    before = files_of(Path(settings.out))

    def fail(*_):
        raise AssertionError("measured again")

    monkeypatch.setattr(measure.Measurer, "__call__", fail)
    strict = collect(replace(settings, verify=Verify(median=0.99, merge=None, min_pictures=1)))
    assert len(strict.jobs) < len(curated.jobs)
    collect(settings)
    assert files_of(Path(settings.out)) == before


def test_a_run_that_was_killed_goes_on(curated, settings):
    before = files_of(Path(settings.out))
    (looks,) = Path(settings.work).rglob("looks.jsonl")
    whole = looks.read_bytes()
    looks.write_bytes(whole[:-40])  # in the middle of its last line
    partial = Path(settings.out + ".partial") / "train" / "images"
    partial.mkdir(parents=True)
    (partial / "left.png").write_bytes(b"half")
    collect(settings)
    assert files_of(Path(settings.out)) == before
    assert looks.read_bytes() == whole and not partial.exists()


def test_people_are_purged_from_everything(curated, settings, tmp_path, capsys):
    shutil.copytree(settings.work, tmp_path / "work")
    shutil.copytree(settings.out, tmp_path / "out")
    Image.fromarray(att_pictures(3, [10])[0]).save(tmp_path / "cy.png")  # not in the set
    gone = next(job for job in curated.jobs if job.choice.identity == "Ann").choice.picture
    options = ["--work", tmp_path / "work", "--data", tmp_path / "out", "--name", "BOB"]
    options += ["--picture", tmp_path / "cy.png", "--sha256", gone.key]
    purge(list(map(str, options)))
    assert "removed: " in capsys.readouterr().out

    theirs = [j.choice.picture for j in curated.jobs if j.choice.identity in ("Bob", "Cy")]
    keys = [picture.key for picture in [*theirs, gone]]
    for name, contents in files_of(tmp_path).items():
        if "refused" not in name and name != "cy.png":
            assert b"Bob" not in contents, name
            assert not any(key in name or key.encode() in contents for key in keys), name
    left = read_manifest(tmp_path / "out" / "train")
    assert {record.identity for record in left} == {"Ann"}

    # They stay out although the download brings them back.
    shutil.rmtree(tmp_path / "work" / "pictures")
    write_work(tmp_path / "work", rows())
    again = replace(
        settings,
        work=str(tmp_path / "work"),
        out=str(tmp_path / "again"),
        split=Split(in_train=0, out_of_train=0),
    )
    found = collect(again)
    assert {job.choice.identity for job in found.jobs} == {"Ann"}
    assert gone.key not in {job.choice.picture.key for job in found.jobs}
    reasons = {drop.reason for drop in found.dropped}
    assert {"refused by name", "refused by picture", "refused by hash"} <= reasons


def test_a_folder_of_others_is_not_written_over(settings, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(SettingsError, match="choose another folder"):
        collect(replace(settings, out=str(tmp_path)))
    with pytest.raises(SettingsError, match="download first"):
        collect(replace(settings, work=str(tmp_path)))
    assert (tmp_path / "mine.txt").read_text() == "mine"


@pytest.mark.slow
def test_people_are_purged_from_shards(settings, tmp_path):
    from data_pipeline.records.shard_reading import open_shards

    out = tmp_path / "out"
    collect(
        replace(
            settings,
            out=str(out),
            output=Output(shards=True, sheet=False),
            split=Split(in_train=0, out_of_train=0),
        )
    )
    shards = out / "shards" / "train"
    before = {record.identity for record in open_shards(shards)[0]}
    options = ["--data", shards, "--name", "bob", "--picture", tmp_path / "cy.png"]
    Image.fromarray(att_pictures(3, [10])[0]).save(tmp_path / "cy.png")
    purge(list(map(str, options)))
    records, read_image = open_shards(shards)
    assert before == {"Ann", "Bob", "Cy"} and {record.identity for record in records} == {"Ann"}
    assert read_image(records[0].image).shape[0] == read_image(records[0].image).shape[1]
    assert not any(b"Bob" in contents for contents in files_of(shards).values())
