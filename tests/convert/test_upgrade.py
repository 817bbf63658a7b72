"""Runs of earlier versions: refused by name, and rewritten to today's names."""

import json

import pytest
from ml_collections import ConfigDict

from configs.base import get_config
from persongen_jax import train
from persongen_jax.config import VERSION
from persongen_jax.convert import __main__ as convert
from persongen_jax.convert import upgrade
from persongen_jax.pipeline import Pipeline
from persongen_jax.settings import OldRun, check_resumable, pin_schedule_steps
from persongen_jax.systems.open import complete_config, open_run, open_system
from persongen_jax.training import integrity
from tests.convert.runs import write_run


def changed(**keys):
    config = get_config()
    config.update(keys)
    return json.loads(config.to_json())


def as_before(config: dict, method: str) -> dict:
    """A config as version 1 saved it."""
    old = {key: value for key, value in config.items() if key not in ("version", "schedule_steps")}
    return {**old, "method": method}


@pytest.fixture
def old_run(small_base, tmp_path):
    """A run of today's id_branch, with the names that version 1 gave it."""
    workdir = write_run(tmp_path / "run", small_base, "id_branch", steps=(5, 10))
    for folder in workdir.glob("checkpoints/*"):
        file = folder / upgrade.CONFIG
        file.write_text(json.dumps(as_before(json.loads(file.read_text()), "ip_adapter")))
        integrity.renew_digest(folder, upgrade.CONFIG)
    saved = json.loads((workdir / "config.json").read_text())
    (workdir / "config.json").write_text(json.dumps(as_before(saved, "ip_adapter")))
    rows = workdir / "validation/metrics.jsonl"
    rows.parent.mkdir()
    rows.write_text(json.dumps({"step": 5, "method": "ip_adapter", "metrics": {}}) + "\n")
    return workdir


def test_an_old_run_is_refused_and_opens_after_the_upgrade(old_run, small_base, capsys):
    pipe = Pipeline.from_pretrained(small_base)
    later = changed(base=str(small_base), start_from=str(old_run))
    for refused in (
        lambda: open_run(old_run),
        lambda: pipe.load_method(None, old_run),
        lambda: open_system(ConfigDict(later)),
        lambda: train.train(
            ConfigDict(changed(base=str(small_base), data="people:in_train")), old_run
        ),
    ):
        with pytest.raises(OldRun, match="python -m persongen_jax.convert upgrade .*run"):
            refused()
    convert.main(["upgrade", str(old_run)])
    assert capsys.readouterr().out.count(": rewritten") == 4
    run = open_run(old_run)
    assert run.step == 10 and run.config.method == "id_branch" and run.config.version == VERSION
    for folder in old_run.glob("checkpoints/*"):
        assert not integrity.find_faults(folder)
    row = json.loads((old_run / "validation/metrics.jsonl").read_text())
    assert row == {"step": 5, "method": "id_branch", "metrics": {}}
    before = {path: path.read_bytes() for path in old_run.rglob("*") if path.is_file()}
    convert.main(["upgrade", str(old_run)])
    assert "has today's names already" in capsys.readouterr().out
    assert before == {path: path.read_bytes() for path in old_run.rglob("*") if path.is_file()}


def test_an_interrupted_upgrade_is_finished(old_run, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(integrity, "renew_digest", killed)
        upgrade.upgrade_run(old_run)
    # A config is new, its digest is not; everything else is as it was.
    assert any(integrity.find_faults(folder) for folder in old_run.glob("checkpoints/*"))
    upgrade.upgrade_run(old_run)
    assert open_run(old_run, 5).config.method == open_run(old_run, 10).config.method == "id_branch"


def test_a_damaged_checkpoint_is_left_alone(old_run):
    file = old_run / "checkpoints/5" / upgrade.CONFIG
    content = file.read_bytes().replace(b"ip_adapter", b"ip_adaptor")
    file.write_bytes(content)
    lines = upgrade.upgrade_run(old_run)
    assert any("checkpoints/5: damaged" in line and "left alone" in line for line in lines)
    assert file.read_bytes() == content
    assert open_run(old_run).step == 10


def test_a_later_version_and_no_run(old_run, tmp_path):
    with pytest.raises(OldRun, match="later version"):
        complete_config({"version": VERSION + 1}, "runs/x")
    with pytest.raises(SystemExit, match="no config.json there; give a run's working directory"):
        convert.main(["upgrade", str(tmp_path / "nothing")])


def test_keys_of_their_own_for_adams_betas():
    before = {**as_before(changed(), "ip_adapter_file"), "adam_b1": 0.9, "adam_b2": 0.99}
    del before["optimizer"], before["optimizer_options"]
    now = changed(optimizer_options={"b2": 0.99}, method="ip_adapter")
    del now["schedule_steps"]
    assert upgrade.upgraded(before) == now
    complete = json.loads(complete_config(upgrade.upgraded(before)).to_json())
    assert {key: complete[key] for key in now} == now
    check_resumable("runs/x", complete, {**complete, "steps": 7})
    with pytest.raises(ValueError, match=r"optimizer_options: \{'b2': 0.99\} -> \{\}"):
        check_resumable("runs/x", complete, {**complete, "optimizer_options": {}})
    # Adam's defaults are no options.
    assert upgrade.upgraded({**before, "adam_b2": 0.999})["optimizer_options"] == {}


def test_a_rate_that_fell_until_the_last_step_keeps_its_curve():
    fell = as_before(changed(lr_schedule="cosine", steps=10), "photomaker")
    constant = as_before(changed(steps=10), "photomaker")
    for old, schedule, end in ((fell, "cosine", 10), (constant, "constant", 0)):
        saved = json.loads(complete_config(upgrade.upgraded(old)).to_json())
        longer = ConfigDict(changed(lr_schedule=schedule, steps=20))
        longer = pin_schedule_steps(longer, saved)
        assert saved["schedule_steps"] == longer.schedule_steps == end
        check_resumable("run", saved, json.loads(longer.to_json()))
    today = {"version": VERSION, "method": "ip_adapter"}
    assert upgrade.upgraded(today) == today
