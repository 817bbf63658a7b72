"""Which runs may appear in one table, and the rows of metrics that cannot be imported."""

import csv
import json

import pytest

from persongen_jax import evaluate
from persongen_jax.evaluation.comparison import (
    GENERATED_WITH,
    check_comparable,
    compare_runs,
    join_groups,
    read_run,
    table,
)
from persongen_jax.metrics.measures import measure

ROW = {
    **{"step": 10, "set": "in_train", "method": "photomaker", "seed": 1},
    **{"sampling_steps": 20, "guidance": 4.0, "merge_step": 2},
    **{"people": 10, "prompts": 4, "images_each": 1, "references": 4, "metrics": {}},
}
# As written by metrics outside this package: one of images, one of a set.
POSE = {"title": "pose error", "form": "{:.1f}°", "over": "images", "plotted": True, "judge": "p"}
KID = {"title": "KID", "form": "{:.3f}", "over": "set", "plotted": True, "judge": "inception"}


def own_row(seed, kid, pose, n=50, **more):
    metrics = {
        "kid": {"mean": kid, "low": None, "high": None, "n": n, **KID},
        "pose": {**measure(pose, ["a", "b"]), **POSE, "chance": 45.0},
    }
    return {**ROW, "seed": seed, "metrics": metrics, **more}


def old_row(**more):
    """A row of the first version: no descriptions, and separate keys for the judges."""
    metrics = {
        "clip_t": measure([20, 22], ["a", "b"]),
        "rank1_10": {**measure([0, 1], ["a", "b"]), "among": 10},
        "detection_rate": measure([1, 1], ["a", "b"]),
    }
    return {**ROW, "clip": "c", "face_net": "f", "metrics": metrics, **more}


def with_judge(name, judge):
    row = own_row(1, 0.1, [1, 2])
    row["metrics"][name]["judge"] = judge
    return row


def test_runs_may_differ_by_method_seed_and_step():
    other = {**ROW, "step": 20, "method": "photomaker_bg", "seed": 2}
    check_comparable({"a": [[ROW], [other]], "b": [[other]]})


@pytest.mark.parametrize("key", GENERATED_WITH)
def test_images_with_other_settings_are_not_compared(key):
    assert key in ROW
    with pytest.raises(ValueError, match=f"different {key}.*7.*; evaluate the runs"):
        check_comparable({"a": [[ROW]], "b": [[{**ROW, key: 7}]]})
    # Nor within one name.
    with pytest.raises(ValueError, match=f"different {key}"):
        check_comparable({"a": [[ROW], [{**ROW, key: 7}]]})


@pytest.mark.parametrize("key", GENERATED_WITH)
def test_another_set_may_be_generated_otherwise(key):
    check_comparable({"a": [[ROW, {**ROW, "set": "out_of_train", key: 7}]]})


def test_a_metric_has_one_judge():
    first = own_row(1, 0.1, [1, 2])
    check_comparable({"a": [[first]], "b": [[own_row(2, 0.2, [3, 4])]]})
    for name, title in (("kid", "KID"), ("pose", "pose error")):
        with pytest.raises(ValueError, match=rf"different judges of {title} \(.*other.*evaluate"):
            check_comparable({"a": [[first]], "b": [[with_judge(name, "other")]]})


@pytest.mark.parametrize(("key", "title"), [("clip", "CLIP-T"), ("face_net", "rank-1/10")])
def test_judges_of_old_rows(key, title):
    with pytest.raises(ValueError, match=f"different judges of {title}"):
        check_comparable({"a": [[old_row()]], "b": [[old_row(**{key: "other"})]]})
    # An old row does not say which detector found the faces.
    new = old_row()
    described = {"title": "faces found", "form": "{:.1%}", "over": "images", "plotted": False}
    new["metrics"]["detection_rate"] |= {**described, "judge": "keypoints:DIR"}
    check_comparable({"a": [[old_row()]], "b": [[new]]})


def test_figures_of_sets_are_of_equal_numbers_of_images():
    fewer = own_row(2, 0.1, [1, 2], n=40)
    with pytest.raises(ValueError, match="different numbers of images for KID on in_train"):
        check_comparable({"a": [[own_row(1, 0.1, [1, 2])]], "b": [[fewer]]})
    check_comparable({"a": [[own_row(1, 0.1, [1, 2]), {**fewer, "set": "out_of_train"}]]})


@pytest.mark.parametrize("folder", ["run", "lr=1e-4"])
def test_a_run_has_the_name_that_it_is_given(folder, tmp_path):
    path = tmp_path / folder / "validation" / "metrics.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(ROW) + "\n")
    assert read_run(str(tmp_path / folder)) == ("photomaker", [ROW])
    assert read_run(f"mine={tmp_path / folder}") == ("mine", [ROW])


def write(path, *rows):
    path.write_text(json.dumps(rows))
    return str(path)


def test_metrics_that_cannot_be_imported_are_compared(tmp_path, capsys):
    runs = [
        write(tmp_path / "a1.json", own_row(1, 0.1, [10, 20])),
        write(tmp_path / "a2.json", own_row(2, 0.3, [30, 40])),
        # Another version also measured the old figures, but had no KID for this run.
        write(tmp_path / "b.json", {**old_row(), "method": "other"}),
    ]
    joint = compare_runs(runs, tmp_path / "out")
    shown = capsys.readouterr().out
    head = "| set | run | runs | KID | pose error | CLIP-T | rank-1/10 | faces found | n |"
    assert head in shown
    # Two runs: 0.1 times Student's t of 12.706 around 0.2.
    row = "| in-train | photomaker | 2 | 0.200 (-1.071 to 1.471) | 25.0° (-117.1° to 167.1°) | - |"
    assert row in shown
    assert "Judges: KID by inception; pose error by p; CLIP-T by c; rank-1/10 by f." in shown
    assert joint[0]["metrics"]["kid"]["n"] == 100 and joint[0]["metrics"]["kid"]["n_each"] == 50
    assert joint[0]["metrics"]["pose"]["chance"] == 45 and joint[0]["metrics"]["pose"]["runs"] == 2
    with (tmp_path / "out" / "comparison.csv").open(newline="", encoding="utf-8") as file:
        first, second = csv.DictReader(file)
    assert float(first["kid"]) == pytest.approx(0.2) and first["kid_judge"] == "inception"
    assert first["pose_n"] == "4" and first["clip_t"] == "" and second["clip_t_judge"] == "c"
    assert second["kid"] == second["kid_judge"] == ""
    assert (tmp_path / "out" / "trajectories.png").exists()
    assert "Judges: " in (tmp_path / "out" / "comparison.md").read_text()


def test_a_table_of_one_run_and_of_nothing():
    rows = table([("", "in_train", 1, own_row(1, 0.1, [1, 2])["metrics"])])
    assert rows.splitlines()[0] == "| set | KID | pose error | n |"
    assert rows.splitlines()[2] == "| in-train | 0.100 | 1.5° (-4.9° to 7.9°) | 50 |"
    assert table([("", "in_train", 1, {})]).splitlines()[-1] == "| in-train | 0 |"


def test_images_that_were_not_measured_are_named():
    row = own_row(1, 0.1, [1, 2])
    row["metrics"]["pose"]["missing"] = 3
    said = table([("mine", "in_train", 1, row["metrics"])]).splitlines()[-1]
    assert said == "Not measured: pose error 3 of 5 images (mine in-train)."
    joint = join_groups({"mine": [[row], [row]]})
    assert "pose error 6 of 10 images" in table(joint)


# ---- the command -------------------------------------------------------------------------------


def write_run(folder, method, seed, figures, clip="c"):
    """A run's rows: ``figures`` are the two people's values at steps 0 and 10."""
    rows = []
    for step, values in zip((0, 10), figures, strict=True):
        metrics = {"clip_t": measure(values, ["a", "b"])}
        row = {"step": step, "set": "in_train", "method": method, "seed": seed, "clip": clip}
        rows.append({**row, "face_net": "f", "metrics": metrics})
    (folder / "validation").mkdir(parents=True)
    path = folder / "validation" / "metrics.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder)


def test_runs_are_compared_by_method(tmp_path, capsys):
    runs = [
        write_run(tmp_path / "a1", "photomaker", 1, [[20, 22], [24, 26]]),
        write_run(tmp_path / "a2", "photomaker", 2, [[20, 22], [28, 30]]),
        write_run(tmp_path / "b1", "photomaker_bg", 1, [[20, 22], [30, 31]]),
    ]
    evaluate.main(["--compare", *runs, "--out", str(tmp_path / "out")])
    shown = capsys.readouterr().out
    # Student's t of 12.706, times √(1² + 2²): people 26 and 28, runs 25 and 29; and times 0.5.
    assert "| in-train | photomaker | 2 | 27.00 (-1.41 to 55.41) |" in shown
    assert "| in-train | photomaker_bg | 1 | 30.50 (24.15 to 36.85) |" in shown
    joint = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert [(entry["name"], entry["runs"]) for entry in joint] == [
        ("photomaker", 2),
        ("photomaker_bg", 1),
    ]
    assert (tmp_path / "out" / "trajectories.png").exists()
    # Another step; other names.
    named = [f"first={runs[0]}", f"second={runs[1]}", "--step", "0"]
    evaluate.main(["--compare", *named, "--out", str(tmp_path / "out")])
    assert "| in-train | second | 1 | 21.00" in capsys.readouterr().out


def test_figures_of_different_judges_are_not_compared(tmp_path):
    runs = [
        write_run(tmp_path / "a", "photomaker", 1, [[1, 2], [3, 4]]),
        write_run(tmp_path / "b", "photomaker", 2, [[1, 2], [3, 4]], clip="other"),
    ]
    with pytest.raises(SystemExit, match=r"different judges of CLIP-T \(c, other\)"):
        evaluate.main(["--compare", *runs, "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit, match="no validation rows"):
        evaluate.main(["--compare", str(tmp_path / "none")])
