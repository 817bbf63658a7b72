"""Runs and studies: found below the roots alone, and read as they are."""

import json

import pytest
from PIL import Image

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


def write_evaluation(run, sets, step=10, size=(8, 8)):
    """What evaluation/of_run.py and a validation write: sheets, references, pictures, an index.

    Args:
        sets: the colours of the pictures, by set.
    """
    results = run / "evaluation" / f"step_{step:06d}"
    pictures = results / "pictures"
    for folder in (pictures, run / "validation"):
        folder.mkdir(parents=True, exist_ok=True)
    index = []
    for name, colours in sets.items():
        for sheet in (results / f"{name}.png", run / "validation" / f"step_{step:06d}_{name}.png"):
            Image.new("RGB", (90, 50), "white").save(sheet)
        for n, colour in enumerate(colours):
            names = f"{name}_{n:03d}.png", f"{name}_{n:03d}_00.png"
            Image.new("RGB", size, "black").save(pictures / names[0])
            Image.new("RGB", size, colour).save(pictures / names[1])
            index.append({"set": name, "label": str(n), "person": str(n), "prompt": "a", "seed": 1})
            index[-1] |= {"reference": names[0], "picture": names[1]}
    (pictures / "index.json").write_text(json.dumps(index))
    return pictures


def test_a_study_is_a_table_of_numbers_and_plots(tmp_path):
    (tmp_path / "comparison.csv").write_text("run,set,face_sim\ndual,in-train,0.28123\n")
    assert folders.study_table(tmp_path) == (
        ["run", "set", "face_sim"],
        [["dual", "in-train", 0.2812]],
    )
    for name in ("face_sim.png", "sheet_in_train.png"):
        (tmp_path / name).write_bytes(b"")
    assert folders.study_plots(tmp_path) == [tmp_path / "face_sim.png"]


def test_a_studys_images_are_the_generated_ones_of_the_last_step(tmp_path):
    method = tmp_path / "dual"
    write_evaluation(method / "seed_10", {"in_train": ["blue"]})
    write_evaluation(method / "seed_2", {"in_train": ["red"]}, step=5)
    sets = {"in_train": ["red", "lime"], "out_of_train": ["blue"] * 30}
    pictures = write_evaluation(method / "seed_2", sets)
    found = folders.study_images(tmp_path, "dual", "in-train")
    assert found == [pictures / f"in_train_00{n}_00.png" for n in range(2)]
    colours = [folders.picture(file).getpixel((0, 0)) for file in found]
    assert colours == [(255, 0, 0), (0, 255, 0)]
    assert len(folders.study_images(tmp_path, "dual", "out-of-train")) == folders.MOST_IMAGES
    assert folders.study_images(tmp_path, "dual", "look-alikes") == []


def test_a_studys_images_that_are_not_there(tmp_path):
    with pytest.raises(ValueError, match="dual: no pictures; evaluate its first run with"):
        folders.study_images(tmp_path, "dual", "in-train")
    pictures = write_evaluation(tmp_path / "dual" / "seed_0", {})
    (pictures / "index.json").write_text('[{"set": "in_train"}]')
    with pytest.raises(ValueError, match="index.json: not an evaluation's index"):
        folders.study_images(tmp_path, "dual", "in-train")
    (pictures / "index.json").write_text('[{"set": "in_train", "picture": "../../secret.png"}]')
    assert folders.study_images(tmp_path, "dual", "in-train") == [pictures / "secret.png"]
