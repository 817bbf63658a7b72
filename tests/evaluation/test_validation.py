"""Validation and evaluation on tiny random networks: written, resumed, stopped, compared."""

import csv
import json
import re

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from persongen_jax import evaluate
from persongen_jax.evaluation import of_run
from persongen_jax.evaluation.folders.layouts import read_images
from persongen_jax.evaluation.trajectories import read_rows
from persongen_jax.evaluation.validation import Validator
from persongen_jax.pipeline import conditioner, images
from persongen_jax.pipeline.images import sample_steps
from persongen_jax.training.checkpoint import Checkpoints
from persongen_jax.training.step import merge_model
from tests.evaluation.tiny import METRICS, OWN, SET, moved, with_config


@pytest.fixture(scope="module")
def run(config, trained, tmp_path_factory):
    """A working directory as left by a run of 20 steps, validated at 0 and 20."""
    system, graphdef, trainable, frozen = trained
    workdir = tmp_path_factory.mktemp("run")
    weights = {10: moved(trainable, 0), 20: moved(trainable, 1)}
    checkpoints = Checkpoints(workdir)
    for step, arrays in weights.items():
        checkpoints.save(step, arrays, {"count": np.zeros(1)}, json.loads(config.to_json()))
    checkpoints.close()

    validator = Validator(system, workdir)
    assert not validator.has(0)
    scalars, pictures, sizes = [], [], []
    log = (lambda *row: scalars.append(row), lambda *row: pictures.append(row))
    for step, arrays in ((0, trainable), (20, weights[20])):
        model = merge_model(graphdef, arrays, frozen)
        validator(model, step, *log)
        assert validator.has(step) and not validator.has(step + 1)
        compiled = sample_steps, conditioner._condition, images._decode
        sizes.append([function._cache_size() for function in compiled])
    return workdir, scalars, pictures, sizes


def rows_of(workdir):
    return read_rows(workdir / "validation" / "metrics.jsonl")


def test_a_row_per_step_and_set_with_every_measure(run):
    rows = rows_of(run[0])
    sets = ("out_of_train", "out_of_domain")
    assert [(r["step"], r["set"]) for r in rows] == [(s, name) for s in (0, 20) for name in sets]
    for row in rows:
        assert tuple(row["metrics"]) == METRICS  # in the config's order
        assert row["method"] == "photomaker_bg" and row["people"] == 2
        assert row["metrics"]["clip_t"]["n"] == 8  # 2 people x 2 prompts x 2 images
        assert row["metrics"]["detection_rate"]["mean"] == 1
        assert row["metrics"]["rank1_10"]["among"] == 2
        assert all(0 <= row["metrics"][name]["mean"] <= 1 for name in ("rank1_10", "rank1_100"))
        low, mean, high = (row["metrics"]["face_sim"][key] for key in ("low", "mean", "high"))
        assert low <= mean <= high
        assert row["metrics"]["clip_t"]["judge"].endswith("clip")
        assert row["metrics"]["rank1_10"]["judge"].endswith("face_net")
        assert row["metrics"]["detection_rate"]["judge"].endswith("face_detector")
        own = row["metrics"]["brightness"]
        assert own["n"] == 8 and own["n_real"] == 4 and own["title"] == "brighter by"
        assert row["metrics"]["frechet_clip"]["n_real"] == 4
        # The tiny net finds no joint; the references' are known.
        pose = row["metrics"]["joints_found"]
        assert pose["mean"] == 0 < pose["joints"] and "known joints are found" in pose["note"]
        for groups in (row["groups"][name] for name in ("skin", "hair", "age")):
            assert sorted(who for people in groups.values() for who in people) == sorted(
                row["metrics"]["clip_t"]["people"]
            )
    # The gallery has the first set's people; the second's are added.
    assert [row["metrics"]["rank1_100"]["among"] for row in rows[:2]] == [5, 7]
    # Other weights, other images.
    assert rows[0]["metrics"]["clip_t"]["mean"] != rows[2]["metrics"]["clip_t"]["mean"]


def test_nothing_is_compiled_at_the_second_validation(run):
    first, second = run[3]
    assert first == second and min(first) > 0


def test_sheets_plots_and_events(run):
    workdir, scalars, pictures, _ = run
    folder = workdir / "validation"
    sheets = {f"step_{s:06d}_{n}.png" for s in (0, 20) for n in ("out_of_train", "out_of_domain")}
    assert {path.name for path in folder.iterdir()} == {
        *sheets,
        "metrics.jsonl",
        "trajectories.png",
    }
    name, sheet, step = pictures[0]
    assert (name, step) == ("validation/out_of_train", 0)
    assert np.array_equal(np.asarray(Image.open(folder / "step_000000_out_of_train.png")), sheet)
    assert ("validation/out_of_train/clip_t", 20) in [(name, step) for name, _, step in scalars]
    rows = rows_of(workdir)
    assert rows[0]["metrics"]["clip_t"]["mean"] in [value for _, value, _ in scalars]


def test_resuming_drops_later_rows_and_the_rest_is_repeated_exactly(run, config, trained, tmp_path):
    system, graphdef, trainable, frozen = trained
    (tmp_path / "validation").mkdir()
    path = tmp_path / "validation" / "metrics.jsonl"
    path.write_text((run[0] / "validation" / "metrics.jsonl").read_text() + '{"step": 30, "s')
    validator = Validator(system, tmp_path, start_step=10)
    assert validator.has(0) and not validator.has(20)
    assert {row["step"] for row in rows_of(tmp_path)} == {0}
    means = validator(merge_model(graphdef, moved(trainable, 1), frozen), 20)
    assert rows_of(tmp_path) == rows_of(run[0])
    assert list(means) == [f"{s}/{m}" for s in ("out_of_train", "out_of_domain") for m in METRICS]


def test_a_stop_leaves_nothing_behind(config, trained, tmp_path):
    system, graphdef, trainable, frozen = trained
    validator = Validator(system, tmp_path)
    asked = []

    def stop():
        asked.append(1)
        return len(asked) > 4  # in the second batch

    validator.should_stop = stop
    assert validator(merge_model(graphdef, trainable, frozen), 0) == {}
    assert len(asked) == 5 and not validator.has(0)
    assert [path.name for path in (tmp_path / "validation").iterdir()] == ["metrics.jsonl"]
    assert rows_of(tmp_path) == []


def test_everyone_starts_from_the_same_noise(run, config, trained):
    """Before the identity acts, two people of one class word get the same images."""
    from persongen_jax.evaluation.people import Evaluation

    system, graphdef, trainable, frozen = trained
    config = config.copy_and_resolve_references()
    config.validation_merge_step = 3  # never
    config.validate_out_of_domain = config.face_net = config.clip = config.pose_net = ""
    evaluation = Evaluation(with_config(system, config))
    for person in evaluation.people["out_of_train"]:
        person.word = "man"
    result = evaluation(merge_model(graphdef, trainable, frozen), 0)["out_of_train"]
    one, other = result.images
    assert one.shape == (2, 2, 64, 64, 3)
    assert np.abs(one.astype(int) - other).max() <= 1
    assert not np.array_equal(one[0, 0], one[0, 1]) and not np.array_equal(one[0], one[1])
    assert list(result.row["metrics"]) == ["brightness"]  # the only one that needs no judge


def test_without_sets_nothing_is_done(config, trained, tmp_path):
    config = config.copy_and_resolve_references()
    config.validate_out_of_train = config.validate_out_of_domain = ""
    validator = Validator(with_config(trained[0], config), tmp_path)
    assert validator.has(7) and validator(None, 7) == {}
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"clip": "/nowhere"}, "/nowhere"),
        ({"face_net": "/nowhere"}, "/nowhere"),
        ({"validate_out_of_train": "/nowhere"}, "/nowhere"),
        ({"validation_prompts": "/nowhere"}, "/nowhere"),
        ({"validation_gallery": "people:nobody"}, "nobody"),
        ({"metrics": ("clip",)}, "no metric 'clip'"),
    ],
)
def test_unusable_settings_fail_at_once(change, named, config, trained, tmp_path):
    config = config.copy_and_resolve_references()
    config.update(change)
    with pytest.raises((ValueError, OSError), match=named):
        Validator(with_config(trained[0], config), tmp_path)


# ---- the command -------------------------------------------------------------------------------


def test_evaluate_measures_as_validation_did(run, tmp_path, capsys):
    workdir = run[0]
    evaluate.main(["--run", str(workdir), "--out", str(tmp_path), "--pictures"])
    rows = json.loads((tmp_path / "metrics.json").read_text())
    wanted = [row for row in rows_of(workdir) if row["step"] == 20]
    assert rows == wanted  # bit for bit
    shown = capsys.readouterr().out
    assert "| set | CLIP-T | brighter by | Face-Sim | rank-1/10 | rank-1/100 |" in shown
    assert re.search(
        r"Judges: CLIP-T, .*/clip; Face-Sim, .*/face_net; faces found, joints found by ", shown
    )
    assert "| out-of-train |" in shown and "| 8 |" in shown
    assert "By group of people" in shown and "| out-of-domain | age: " in shown
    assert (tmp_path / "groups.csv").read_text().startswith("of,grouped_by,group,metric,value,low")
    assert Image.open(tmp_path / "out_of_train.png").height > 100
    # The first image of every person and prompt of both sets, as --images reads them.
    pictures = read_images("run", tmp_path)
    assert len(pictures.entries) == 8 and len(pictures.references) == 4
    assert {entry.seed for entry in pictures.entries} == {"42"}
    assert all("img" not in entry.text and entry.text for entry in pictures.entries)


def test_evaluate_takes_options_and_steps(run, tmp_path, capsys):
    options = ["--sets", f"in_train={SET.format('in_train', 2)}", "--people-per-set", "1"]
    options += ["--images-each", "4", "--step", "10", "--gallery", ""]
    options += ["--metrics", "rank1_100", "clip_t", OWN["brightness"]]
    evaluate.main(["--run", str(run[0]), *options, "--out", str(tmp_path)])
    (row,) = json.loads((tmp_path / "metrics.json").read_text())
    assert (row["step"], row["set"], row["people"], row["images_each"]) == (10, "in_train", 1, 4)
    assert row["metrics"]["clip_t"]["n"] == 8
    assert list(row["metrics"]) == ["clip_t", "brightness"]  # no gallery, no rank-1 among 100
    assert row["metrics"]["clip_t"]["low"] is None  # one person says nothing about others
    assert "| set | CLIP-T | brighter by | n |" in capsys.readouterr().out


def test_options_of_several_names_replace_the_configs(config):
    """Also for a saved config, where JSON has turned them into lists."""
    saved = ConfigDict(json.loads(config.to_json()))
    options = ["--run", "x", "--metrics", "clip_t", "face_sim", "--judges-are-inputs", "clip_t"]
    for each in (config.copy_and_resolve_references(), saved):
        of_run.change_config(each, evaluate.parse_arguments(options))
        assert tuple(each.metrics) == ("clip_t", "face_sim")
        assert tuple(each.judges_are_inputs) == ("clip_t",)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--step", "15"], "there are 10, 20"),
        (["--sets", "train"], "out_of_domain"),
        (["--sets", "in_train"], "in_train=…"),
        (["--base", "/nowhere"], "/nowhere"),
    ],
)
def test_evaluate_names_what_is_wrong(options, named, run):
    with pytest.raises(SystemExit) as caught:
        evaluate.main(["--run", str(run[0]), *options])
    assert caught.value.code.startswith("error: ") and named in caught.value.code


def test_a_user_defined_metric_is_joined_and_plotted(run, tmp_path, capsys):
    """Two runs of one method, and a third of another; the rows alone describe the metric."""
    files = []
    for number, method in enumerate(("photomaker_bg", "photomaker_bg", "other")):
        rows = [{**row, "method": method, "seed": number} for row in rows_of(run[0])]
        for row in rows:
            row["metrics"] = {"brightness": dict(row["metrics"]["brightness"])}
            row["metrics"]["brightness"]["mean"] += number
        files.append(tmp_path / f"{number}.json")
        files[-1].write_text(json.dumps(rows))
    evaluate.main(["--compare", *map(str, files), "--out", str(tmp_path / "out")])
    shown = capsys.readouterr().out
    assert "| set | run | runs | brighter by | n |" in shown and "judge" not in shown.lower()
    (joint, *_) = json.loads((tmp_path / "out" / "comparison.json").read_text())
    first = json.loads(files[0].read_text())[2]["metrics"]["brightness"]["mean"]
    found = joint["metrics"]["brightness"]
    assert (found["low"], found["mean"], found["high"]) == pytest.approx(
        (first + 0.5 - 12.7062 * 0.5, first + 0.5, first + 0.5 + 12.7062 * 0.5)
    )  # Student's t with one degree of freedom
    assert found["n"] == 16 and found["n_real"] == 4
    with (tmp_path / "out" / "comparison.csv").open(newline="") as file:
        row = next(csv.DictReader(file))
    assert float(row["brightness"]) == pytest.approx(first + 0.5) and row["brightness_n"] == "16"
    assert Image.open(tmp_path / "out" / "trajectories.png").height > 100
