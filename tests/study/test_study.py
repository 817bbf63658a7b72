"""A study: planned, checked, and its tables against the runs' own files."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

from persongen_jax.evaluation.trajectories import SETS
from persongen_jax.metrics.measures import join_runs, measure, with_descriptions
from persongen_jax.study.__main__ import (
    check_settings,
    describe,
    is_evaluated,
    is_trained,
    plan_runs,
    run_study,
)
from persongen_jax.study.cost import count_trained
from persongen_jax.study.report import write_report
from tests.study.studies import (
    METHODS,
    SEEDS,
    STEPS,
)

PEOPLE = ("ann", "bob", "cid")


def test_runs_come_seed_by_seed_with_their_own_settings(study, tmp_path):
    study.only = {"photomaker_bg": {"lr_background": 0.5}}
    runs = plan_runs(study)
    assert [(run.name, run.seed) for run in runs] == [(m, s) for s in SEEDS for m in METHODS]
    assert [run.config.seed for run in runs] == [0, 0, 1, 1]
    assert [run.config.lr_background for run in runs][:2] == [1e-5, 0.5]
    assert {run.config.steps for run in runs} == {STEPS}
    assert runs[1].folder == tmp_path / "study" / "photomaker_bg" / "seed_0"
    assert describe(runs[0]) == "photomaker, seed 0: not begun"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seeds": ()}, "at least one"),
        ({"only": {"cascade": {"rank": 3}}}, "cascade"),
        ({"only": {"photomaker": {"batch_size": 4}}}, "batch_size differ.*overrides.batch_size"),
        ({"only": {"photomaker": {"ranks": 4}}}, "no key 'ranks'"),
        ({"only": {"photomaker": {"rank": "x"}}}, "rank='x'"),
        ({"methods": ("nothing",)}, "nothing.py"),
        ({"evaluation": {"people": 3}}, "config.evaluation: people: .*people_per_set"),
    ],
)
def test_faulty_plans_are_named(change, named, study):
    for key, value in change.items():
        study[key] = value
    with pytest.raises(ValueError, match=named):
        plan_runs(study)


def test_another_setting_than_a_finished_runs_is_refused(study, tmp_path):
    run = plan_runs(study)[0]
    run.folder.mkdir(parents=True)
    run.config.start_from = str(tmp_path / "earlier")
    settings = json.loads(run.config.to_json())
    path = run.folder / "config.json"
    # The base may have moved, and how often checkpoints are made does not matter.
    path.write_text(json.dumps({**settings, "base": "/elsewhere/sdxl", "checkpoint_every": 7}))
    check_settings(run)
    # Training itself found the checkpoint of the earlier run, and what the data's references show.
    found = {"start_from_step": 3, "references": "face"}
    path.write_text(json.dumps({**settings, **found}))
    check_settings(run)
    path.write_text(json.dumps({**settings, "lr_lora": 0.5}))
    with pytest.raises(ValueError, match=r"lr_lora: 0\.5 -> 0\.003"):
        check_settings(run)


def values_of(method, seed, step, set_name):
    """Figures that differ in everything."""
    rng = np.random.default_rng([METHODS.index(method), seed, step, SETS.index(set_name)])
    return rng.uniform(0, 1, len(PEOPLE))


def finish(run):
    """What a run leaves: a checkpoint, rows, an evaluation with images."""
    (run.folder / "checkpoints" / str(STEPS)).mkdir(parents=True)
    (run.folder / "checkpoints" / str(STEPS) / "arrays").write_bytes(bytes(1000))
    (run.folder / "config.json").write_text(run.config.to_json())

    def rows(step):
        out = []
        for set_name in SETS:
            values = values_of(run.name, run.seed, step, set_name)
            metrics = {
                "clip_t": measure(100 * values, PEOPLE),
                "face_sim": measure(values, PEOPLE),
                "detection_rate": measure(np.ones(3), PEOPLE),
                "rank1_10": {**measure(values > 0.5, PEOPLE), "among": 3},
                "rank1_100": {**measure(values > 0.7, PEOPLE), "among": 50},
            }
            row = {"step": step, "set": set_name, "method": run.name, "clip": "c"}
            out.append({**row, "face_net": "f", "metrics": metrics})
        return out

    (run.folder / "validation").mkdir()
    lines = [json.dumps(row) for step in range(STEPS + 1) for row in rows(step)]
    (run.folder / "validation" / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    folder = run.results / "pictures"
    folder.mkdir(parents=True)
    (run.results / "metrics.json").write_text(json.dumps(rows(STEPS)))
    (run.results / "options.json").write_text(json.dumps(run.evaluation))
    shade = 60 * (1 + METHODS.index(run.name))
    index = []
    for set_name in SETS:
        Image.new("RGB", (64, 64), (255, 0, 0)).save(folder / f"{set_name}_r.png")
        Image.new("RGB", (64, 64), (0, 0, shade)).save(folder / f"{set_name}.png")
        entry = {"set": set_name, "label": f"ann of {set_name}"}
        names = {"reference": f"{set_name}_r.png", "picture": f"{set_name}.png"}
        index.append({**entry, **names})
    (folder / "index.json").write_text(json.dumps(index))


def test_finished_means_saved_validated_and_evaluated(study):
    run = plan_runs(study)[0]
    finish(run)
    assert is_trained(run) and is_evaluated(run)
    assert describe(run).endswith("finished")
    study.evaluation.images_each = 7
    assert is_trained(run) and not is_evaluated(plan_runs(study)[0])
    rows = run.folder / "validation" / "metrics.jsonl"
    whole = rows.read_text()
    rows.write_text(whole[: whole.index(f'"step": {STEPS}')])
    assert not is_trained(run)
    rows.write_text(whole)
    last = run.folder / "checkpoints" / str(STEPS)
    last.rename(last.with_name("1"))
    assert not is_trained(run) and describe(run).endswith(f"step 1 of {STEPS}")


def test_a_finished_study_only_reports(study, capsys):
    study.cost_rounds = 0
    for run in plan_runs(study):
        finish(run)
    run_study(study)
    shown = capsys.readouterr().out
    assert shown.count(": finished") == 4 and "# 2 methods, seeds 0, 1" in shown
    run_study(study, dry_run=True)
    assert "config_files" in capsys.readouterr().out


COSTS = {
    "device": "1 x cpu",
    "methods": {
        name: {
            "trained": {"lora": 1_500_000, "fuse_module": 500_000},
            "frozen": 9,
            "gflop": 12.5,
            "seconds": 0.1 * n,
            "relative": n,
            "low": n - 0.1,
            "high": n + 0.1,
            "full_size": {"lora": 185_000_000} if name == "photomaker" else None,
        }
        for n, name in enumerate(METHODS, 1)
    },
}


def markdown(text) -> list[list[str]]:
    """Cells of the table's lines."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_tables_say_what_the_metrics_files_say(study, tmp_path):
    runs = plan_runs(study)
    for run in runs:
        finish(run)
    page = write_report(study, runs, COSTS)
    out = tmp_path / "study"
    assert (out / "study.md").read_text() == page + "\n"
    with open(out / "comparison.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["set"], row["run"]) for row in rows] == [(s, m) for s in SETS for m in METHODS]
    cells = markdown((out / "comparison.md").read_text())
    titles = cells[0]
    for row, line in zip(rows, cells[2:], strict=True):
        finals = [
            json.loads((run.results / "metrics.json").read_text())
            for run in runs
            if run.name == row["run"]
        ]
        own = [entry for final in finals for entry in final if entry["set"] == row["set"]]
        assert len(own) == int(row["runs"]) == 2
        for metric in ("clip_t", "face_sim", "rank1_10", "rank1_100"):
            wanted = join_runs([with_descriptions(entry)[metric] for entry in own])
            for key, name in (("mean", ""), ("low", "_low"), ("high", "_high"), ("n", "_n")):
                assert float(row[metric + name]) == pytest.approx(wanted[key], abs=1e-12)
            means = [np.mean(values_of(row["run"], s, STEPS, row["set"])) for s in SEEDS]
            if metric == "face_sim":
                assert float(row[metric]) == pytest.approx(np.mean(means))
                cell = line[titles.index("Face-Sim")]
                assert cell == f"{wanted['mean']:.3f} ({wanted['low']:.3f} to {wanted['high']:.3f})"
    assert rows[0]["clip_t_judge"] == "c" and "Judges: CLIP-T by c; Face-Sim, rank-1/10" in page
    assert "rank-1/10 on in-train 33.3%" in page and "rank-1/100 on out-of-train 2.0%" in page


def test_figures_sheets_and_costs(study, tmp_path):
    runs = plan_runs(study)
    for run in runs:
        finish(run)
    page = write_report(study, runs, COSTS)
    out = tmp_path / "study"
    assert "rank1_10.png" not in page and not (out / "rank1_10.png").exists()
    for name in ("face_sim.png", "clip_t.png", *(f"sheet_{name}.png" for name in SETS)):
        assert f"({name})" in page and Image.open(out / name).height > 100
    sheet = np.asarray(Image.open(out / "sheet_in_train.png")).astype(int)
    line = sheet[len(sheet) // 2]
    # The reference on the left, then a column per method, in the study's order.
    places = [np.flatnonzero((line == colour).all(-1)).mean() for colour in ((255, 0, 0),)]
    places += [np.flatnonzero((line == (0, 0, 60 * n)).all(-1)).mean() for n in (1, 2)]
    assert places == sorted(places) and len(set(places)) == 3

    cells = markdown((out / "cost.md").read_text())
    assert cells[2][:5] == ["photomaker", "2.000 M", "12.5", "1.00 (0.90 to 1.10)", "0.0 MB"]
    assert cells[2][5:] == ["185.0 M", "2.22 GB"] and cells[3][5:] == ["-", "-"]
    with open(out / "cost.csv", newline="") as file:
        costs = list(csv.DictReader(file))
    assert [row["checkpoint_bytes"] for row in costs] == ["1000", "1000"]
    assert costs[1]["full_size_trained_parameters"] == "" and costs[1]["relative"] == "2"


@pytest.mark.slow
def test_parameters_at_full_size():
    """Against the layers that methods.md and formats.md list."""
    counts = count_trained("configs/photomaker_bg.py")
    blocks = {640: 10, 1280: 60}  # transformer blocks by width
    width = 2048
    linear = [(2 * width, width), (width, width), (width, width), (width, width)]
    norms = [2 * width, width, width]
    assert counts == {
        "projections": 1024 * (768 + 1280),
        "fuse_module": sum(i * o + o for i, o in linear) + 2 * sum(norms),
        # to_q, to_k, to_v, to_out of both attentions; attn2's to_k and to_v read the text.
        "lora": sum(64 * n * (6 * 2 * h + 2 * (width + h)) for h, n in blocks.items()),
        "background": sum(2 * n * width * h for h, n in blocks.items()),
    }
    assert counts["background"] == 340_787_200
