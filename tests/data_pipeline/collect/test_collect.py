"""All stages on AT&T's photographs: a data set, its report, a changed threshold, a purge."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from data_pipeline.collect.__main__ import main
from data_pipeline.collect.looking import measure
from data_pipeline.collect.make import ProcessesError, collect, notes_of
from data_pipeline.collect.output.sheets import sheets_of
from data_pipeline.collect.output.tars import read_tar
from data_pipeline.collect.purge.__main__ import main as purge
from data_pipeline.collect.records import Dropped, read_pictures
from data_pipeline.collect.refused import append, read_refused
from data_pipeline.collect.settings import (
    Caption,
    Collect,
    Crop,
    Filter,
    Limit,
    Mask,
    Measure,
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
    found[1][2].update(consent="yes", licence="CC BY 4.0", caption="a man with glasses")
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


def test_records_say_with_what_right_pictures_are_used(curated):
    said = [record.extra["collected"] for record in curated.records]
    assert {(s["consent"], s["licence"]) for s in said} == {("", ""), ("yes", "CC BY 4.0")}


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
    more = [("Dee", att_pictures(3, [10])[0], {})]  # Cy under another name
    write_work(tmp_path / "work", [*rows(), *more])
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
    dropped = (tmp_path / "again" / "dropped.jsonl").read_text()
    assert "Bob" not in dropped and "Cy" not in dropped and "Dee" not in dropped
    assert "dropped by refused" not in (tmp_path / "again" / "report.html").read_text()


def test_all_names_of_a_person_and_all_copies_are_purged(curated, settings, tmp_path):
    shutil.copytree(settings.work, tmp_path / "work")
    shutil.copytree(settings.out, tmp_path / "out")
    copy = next(drop for drop in curated.dropped if drop.reason == "near copy")
    purge(["--work", str(tmp_path / "work"), "--data", str(tmp_path / "out"), "--name", "annie"])
    # Annie is Ann: nothing of Ann's is left either, but for the stranger who had her name.
    left = {picture.identity for picture in read_pictures(tmp_path / "work")}
    assert left == {"Bob", "Cy"}
    assert json.loads((tmp_path / "work" / "merged.json").read_text()) == []
    remembered = read_refused(tmp_path / "work")  # new pictures are refused under both names
    for name in ("Ann", "Annie"):
        assert remembered.of_picture(name, "https://example.org/new.jpg") == "refused by name"
    entries = (tmp_path / "out" / "train" / "manifest.jsonl").read_text().splitlines()
    kept = {json.loads(line)["identity"] for line in entries}
    assert kept <= {"Bob", "Cy"}
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["kept"] == sum(report["sources"].values()) < len(curated.jobs)
    assert f"att {report['kept']}" in (tmp_path / "out" / "DATASET_CARD.md").read_text()

    # A dropped copy takes the kept one with it, and the other way round.
    for folder, key in (("1", copy.key), ("2", copy.value["of"])):
        shutil.copytree(settings.work, tmp_path / folder)
        purge(["--work", str(tmp_path / folder), "--sha256", key])
        keys = {picture.key for picture in read_pictures(tmp_path / folder)}
        assert not keys & {copy.key, copy.value["of"]}
        listed = (tmp_path / folder / "refused.txt").read_text()
        assert copy.key in listed and copy.value["of"] in listed


def test_people_are_purged_from_tars_by_a_picture(curated, settings, tmp_path):
    shutil.copytree(Path(settings.out) / "webdataset", tmp_path / "tars")
    Image.fromarray(att_pictures(3, [10])[0]).save(tmp_path / "cy.png")

    def names():
        found = [pair for tar in (tmp_path / "tars").rglob("*.tar") for pair in read_tar(tar)]
        return {json.loads(text)["identity"] for name, text in found if name.endswith(".json")}

    assert "Cy" in names()
    purge(["--data", str(tmp_path / "tars"), "--picture", str(tmp_path / "cy.png")])
    assert names() == {"Ann", "Bob"}


def test_most_pictures_failing_is_not_the_pictures_fault(settings, tmp_path, capsys):
    noise = np.random.default_rng(0).integers(0, 255, (3, 64, 64, 3), np.uint8)
    write_work(tmp_path / "work", [("Ann", image, {}) for image in noise])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "report.json").write_text("the old one")
    broken = Measure(scores=("tests.data_pipeline.collect.crashing:broken",))
    values = {"work": str(tmp_path / "work"), "out": str(tmp_path / "out")}
    with pytest.raises(ProcessesError, match="3 of 3 pictures failed.*the GPU is gone"):
        collect(replace(settings, measure=broken, **values))
    assert (tmp_path / "out" / "report.json").read_text() == "the old one"
    told = capsys.readouterr().err
    assert all(f"{p.key} ({tmp_path}" in told for p in read_pictures(tmp_path / "work"))


def test_models_are_opened_before_the_work(settings, tmp_path):
    write_work(tmp_path, [("Ann", np.zeros((64, 64, 3), np.uint8), {})])
    values = {"work": str(tmp_path), "out": str(tmp_path / "out")}
    for wrong in ({"caption": Caption(captioner="qwen:none")}, {"mask": Mask("no.module:name")}):
        with pytest.raises(ValueError, match="none|no.module"):
            collect(replace(settings, **values, **wrong))
        assert not (tmp_path / "measured").exists()


def test_from_a_list_to_a_set_by_one_command(tmp_path, capsys):
    for name, person in {"Ann": 1, "Bob": 2}.items():
        (tmp_path / "photos" / name).mkdir(parents=True)
        for n, image in enumerate(att_pictures(person, [1, 2])):
            Image.fromarray(image).save(tmp_path / "photos" / name / f"{n}.png")
    changes = {
        "rows": tmp_path / "photos",
        "workers": 0,
        "split.in_train": 0,
        "split.out_of_train": 1,
        "split.out_of_domain": "('elsewhere',)",
        "download.fixed_time": "2026-01-31T12:00:00Z",
    }
    options = [f"--set={key}={value}" for key, value in changes.items()]
    folders = ["--work", str(tmp_path / "work"), "--out", str(tmp_path / "out")]
    main(["--config", "configs/collect/att.py", *folders, *options])
    told = capsys.readouterr()
    assert "4 of 4 rows have a picture" in told.out
    assert "'elsewhere' is the origin of no picture" in told.err
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["kept"] == 4 and set(report["sets"]) == {"train", "out_of_train"}


def test_sheets_show_nobody_who_is_not_to_be_seen(settings, tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (4, 64, 64, 3), np.uint8)
    pictures = write_work(tmp_path, [("Ann", image, {}) for image in noise])
    reasons = [("filter", "nsfw too high"), ("filter", "no face"), ("refused", "refused by name")]
    dropped = [
        Dropped(stage, picture.key, "Ann", picture.url, reason)
        for picture, (stage, reason) in zip(pictures, reasons, strict=False)
    ]
    found = SimpleNamespace(jobs=[], pictures=pictures, dropped=dropped)
    limits = Filter(limits=(Limit("nsfw", 0.5),))
    sheets = sheets_of(replace(settings, work=str(tmp_path), filter=limits), found, tmp_path)
    assert list(sheets) == ["dropped by filter: no face (1 of 1)"]


def test_a_refused_face_of_another_recogniser_is_told(settings, tmp_path):
    append(tmp_path, [], [{"embedding": [1.0, 0.0], "least": 0.5, "recogniser": "arcface"}])
    notes = notes_of([], replace(settings, work=str(tmp_path)))
    assert len(notes) == 1 and "purge with their pictures and --recogniser sface" in notes[0]
    refusals, same = read_refused(tmp_path), np.array([[1.0, 0.0]])
    assert refusals.of_faces(same, "sface") is None  # of as many numbers, which mean others
    assert refusals.of_faces(same, "arcface") == (1.0, 0.5)
    assert refusals.of_faces(np.array([[0.49, 0.87]]), "arcface") is None


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
