"""The best checkpoint of a run, and early stopping: both follow from the validations alone."""

import json
from types import SimpleNamespace

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from configs.attributes import classifier
from persongen_jax.evaluation.progress.best import Best, best_of
from persongen_jax.evaluation.validation import Validator
from persongen_jax.methods.start import pin_start_step
from persongen_jax.systems.open import open_run, open_system
from persongen_jax.train import train
from persongen_jax.training.checkpoint import Checkpoints, find_run, saved_steps
from tests.helpers.training_runs import changed, metrics

MORE = SimpleNamespace(less_is_better=False, target=None)
LESS = SimpleNamespace(less_is_better=True, target=None)
NEAR = SimpleNamespace(less_is_better=False, target=0.5)


def get_config(**changes):
    config = classifier.get_config("digits")
    config.widths, config.batch_size, config.warmup_steps = (8, 8), 16, 0
    config.lr_model, config.steps, config.log_every = 0.03, 60, 4
    config.validation_every, config.checkpoint_every, config.keep_checkpoints = 5, 20, 1
    config.lr_schedule = "constant"  # or a run to fewer steps would have another one
    return changed(config, **changes)


@pytest.mark.parametrize(
    ("metric", "values", "step"),
    [
        (MORE, {5: 0.1, 10: 0.3, 15: 0.3, 20: 0.2}, 10),  # of equal ones the first
        (LESS, {5: 0.1, 10: 0.3, 15: 0.05}, 15),
        (NEAR, {5: 0.1, 10: 0.7, 15: 0.4, 20: 0.9}, 15),
        (MORE, {5: None, 10: -2.0, 15: None}, 10),
    ],
)
def test_the_best_is_by_the_metric_s_direction(metric, values, step):
    assert best_of(values, metric) == (step, values[step])
    assert best_of({5: None}, metric) is None


def test_a_checkpoint_that_is_kept_outlives_newer_ones(tmp_path):
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        for step, kept in ((1, None), (2, None), (3, 2), (4, 2), (5, 4), (6, 4)):
            checkpoints.kept = kept
            checkpoints.save(step, {"a": np.zeros(2)}, {"count": np.zeros(1)}, {})
    assert saved_steps(tmp_path / "checkpoints") == [4, 6]
    best = tmp_path / "checkpoints" / "best"
    with pytest.raises(FileNotFoundError, match="no best.json; train with --config.best_metric"):
        find_run(best)
    (tmp_path / "best.json").write_text('{"step": 4}')
    assert find_run(best) == (tmp_path, 4) and find_run(tmp_path) == (tmp_path, 6)
    config = changed(get_config(), start_from=str(best), start_from_step=0)
    assert pin_start_step(config, None).start_from_step == 4


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"early_stopping": 3}, "needs a metric to go by"),
        ({"best_metric": "face_sim"}, "'face_sim' is not measured .* which have accuracy"),
        ({"best_metric": "accuracy", "validation_every": 0}, "needs validations"),
        ({"best_metric": "accuracy", "best_set": "seen"}, "'seen' is not validated.*held_out"),
    ],
)
def test_what_is_not_validated_is_refused(changes, said, tmp_path):
    system = open_system(get_config(**changes))
    with pytest.raises(ValueError, match=said):
        Best(system, Validator(system, tmp_path), tmp_path)


def test_a_metric_chosen_late_keeps_to_checkpoints_that_exist(tmp_path):
    system = open_system(get_config(best_metric="accuracy", early_stopping=2))
    for step in (10, 15):
        (tmp_path / "checkpoints" / str(step)).mkdir(parents=True)
    rows = [
        {"step": step, "set": "held_out", "metrics": {"accuracy": {"mean": mean}}}
        for step, mean in ((0, 0.9), (5, 0.8), (10, 0.5), (15, 0.6))
    ]
    (tmp_path / "validation").mkdir()
    path = tmp_path / "validation" / "metrics.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    best = Best(system, Validator(system, tmp_path, 15), tmp_path)
    assert best.step == 15 and not best.ended
    for step, mean in ((20, 0.55), (25, 0.1)):
        row = {"step": step, "set": "held_out", "metrics": {"accuracy": {"mean": mean}}}
        path.write_text(path.read_text() + json.dumps(row) + "\n")
        best.look()
    assert best.step == 15 and best.ended
    assert json.loads((tmp_path / "best.json").read_text())["value"] == 0.6


def arrays(workdir, step):
    return [
        ocp.StandardCheckpointer().restore(workdir / "checkpoints" / str(step) / item)
        for item in ("trainable", "opt_state")
    ]


def validations(workdir):
    text = (workdir / "validation" / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.slow
def test_a_run_stops_early_says_so_and_goes_on_as_if_it_had_not(tmp_path, capsys):
    config = get_config(best_metric="accuracy", early_stopping=1, metrics_csv=True)
    early, whole = tmp_path / "early", tmp_path / "whole"
    assert train(config, early)
    found = {row["step"]: row["metrics"]["accuracy"]["mean"] for row in validations(early)}
    end, best = max(found), max(found, key=lambda step: (step > 0, found[step], -step))
    assert best < end < config.steps and found[best] >= found[end]
    assert json.loads((early / "best.json").read_text())["step"] == best == end - 5
    assert saved_steps(early / "checkpoints") == [best, end]
    assert f"at step {best}" in (said := capsys.readouterr().out)
    assert "stopped early: 1 validations" in said and "--config.early_stopping=0" in said
    assert open_run(early / "checkpoints" / "best").step == best

    # Repeated it does nothing but say it again; told to go on, it ends like a run without.
    assert train(config, early) and "stopped early" in capsys.readouterr().out
    assert saved_steps(early / "checkpoints") == [best, end]
    longer = changed(config, early_stopping=0, steps=end + 2)
    assert train(longer, early) and "stopped early" not in capsys.readouterr().out
    assert train(changed(longer, best_metric="", early_stopping=0), whole)
    assert jax.tree.all(jax.tree.map(np.array_equal, *(arrays(w, end + 2) for w in (early, whole))))
    assert metrics(early) == metrics(whole) and validations(early) == validations(whole)
    lines = (early / "metrics.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == [
        "step",
        *(str(r["step"]) for r in metrics(early)),
    ]
