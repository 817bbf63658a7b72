"""Runs and studies: found below the roots alone, and read as they are."""

import json

import pytest

from persongen_jax.demo import folders


def write_run(folder, steps=(0, 10)):
    (folder / "validation").mkdir(parents=True)
    rows = [{"step": s, "loss": 1 / (s + 1), "images_per_second": 3.0, "mfu": 0.1} for s in steps]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    face = {"mean": 0.3, "low": 0.2, "high": 0.4, "n": 4, "title": "Face-Sim", "plotted": True}
    judged = [{"step": s, "set": "in_train", "metrics": {"face_sim": face}} for s in steps]
    text = "".join(json.dumps(row) + "\n" for row in judged)
    (folder / "validation" / "metrics.jsonl").write_text(text)
    for step in steps:
        (folder / "validation" / f"step_{step:06d}_in_train.png").write_bytes(b"")
    return folder


def test_a_run_is_found_and_read(tmp_path):
    run = write_run(tmp_path / "runs" / "a" / "seed_0")
    roots = ((tmp_path / "runs").resolve(),)
    assert folders.found(roots, folders.RUN) == [str(run)]
    curves = folders.training_curves(run)
    assert curves["loss"] == [(0, 1.0), (10, 1 / 11)] and len(curves["images/s"]) == 2
    assert folders.validation_curves(run)["Face-Sim"]["in_train"][0] == (0, 0.3, 0.2, 0.4)
    assert {step: len(own) for step, own in folders.sheets(run).items()} == {0: 1, 10: 1}


def test_a_run_that_has_just_begun_has_nothing(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("")
    assert folders.training_curves(tmp_path)["loss"] == []
    assert folders.validation_curves(tmp_path) == {} and folders.sheets(tmp_path) == {}


def test_nothing_outside_of_the_roots(tmp_path):
    run = write_run(tmp_path / "secret")
    root = tmp_path / "runs"
    root.mkdir()
    (root / "link").symlink_to(run, target_is_directory=True)
    roots = (root.resolve(),)
    assert folders.found(roots, folders.RUN) == []
    for name in (str(run), str(root / "link"), str(root / ".." / "secret"), "/etc"):
        with pytest.raises(ValueError, match="outside of the page's folders"):
            folders.allowed(name, roots)
    with pytest.raises(ValueError, match="no such folder"):
        folders.allowed(str(root / "none"), roots)
    with pytest.raises(ValueError, match="choose a folder"):
        folders.allowed("", roots)
    assert folders.allowed(str(root), roots) == root


def test_a_study_is_a_table_of_numbers_and_images(tmp_path):
    (tmp_path / "comparison.csv").write_text("run,set,face_sim\ndual,in-train,0.28123\n")
    assert folders.study_table(tmp_path) == (
        ["run", "set", "face_sim"],
        [["dual", "in-train", 0.2812]],
    )
    pictures = tmp_path / "dual" / "seed_0" / "evaluation" / "images" / "in_train"
    pictures.mkdir(parents=True)
    (pictures / "0.png").write_bytes(b"")
    for name in ("face_sim.png", "sheet_in_train.png"):
        (tmp_path / name).write_bytes(b"")
    assert folders.study_plots(tmp_path) == [tmp_path / "face_sim.png"]
    assert folders.study_images(tmp_path, "dual", "in-train") == [pictures / "0.png"]
    assert folders.study_images(tmp_path, "dual", "out-of-train") == []
