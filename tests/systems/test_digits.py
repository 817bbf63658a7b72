"""The loop is generic: a one-file system, on scikit-learn's digits, with the usual commands."""

import ast
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from persongen_jax import evaluate
from persongen_jax.aot.programs import encoders, training, with_batch
from persongen_jax.evaluation.validation import open_evaluation
from persongen_jax.features import __main__ as features
from persongen_jax.parallel.sharding import make_mesh, replicated
from persongen_jax.study import __main__ as study
from persongen_jax.systems.assembly import assemble, step_spec
from persongen_jax.systems.open import open_run, open_system
from persongen_jax.train import train
from persongen_jax.training import flop_count
from persongen_jax.training.trained import load_trained
from tests.parallel.test_distributed import Two
from tests.parallel.test_sharding import MESHES, assert_same, finish, start, two_processes
from tests.pipeline.test_saving import GENERATED, source_type
from tests.systems.digits_config import get_config
from tests.training.test_checkpoint import flip_a_bit, largest_file

FILE = Path(__file__).parent / "digits.py"
ROOT = FILE.parents[2]
STEPS, EVERY = 24, 8


def small():
    config = get_config()
    config.batch_size, config.steps, config.warmup_steps = 16, STEPS, 4
    config.log_every, config.checkpoint_every, config.validation_every = 3, EVERY, STEPS
    config.validation_steps = 4
    return config


def command(workdir, config):
    """The training command of this config, for runs that are killed."""
    changed = ("batch_size", "steps", "warmup_steps", "log_every", "checkpoint_every")
    changed += ("validation_every", "validation_steps")
    options = [f"--config.{key}={config[key]}" for key in changed]
    file = f"--config={FILE.parent}/digits_config.py"
    return [sys.executable, "-m", "persongen_jax.train", file, f"--workdir={workdir}", *options]


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    """The folder of a run from the first step to the last."""
    workdir = tmp_path_factory.mktemp("digits") / "run"
    assert train(small(), workdir)
    return workdir


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def trained(workdir):
    return load_trained(workdir, replicated(make_mesh()), STEPS)[0]


def test_the_system_is_one_short_file_on_public_imports():
    source = FILE.read_text()
    assert len(source.splitlines()) <= 80
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module.startswith("persongen_jax"):
            assert not any(part.startswith("_") for part in node.module.split("."))
            assert not any(name.name.startswith("_") for name in node.names)


def test_it_trains_and_validates(whole_run):
    log = rows(whole_run / "metrics.jsonl")
    assert [row["step"] for row in log] == list(range(3, STEPS + 1, 3))
    assert log[-1]["loss"] < log[0]["loss"]
    validated = rows(whole_run / "validation" / "metrics.jsonl")
    assert [row["step"] for row in validated] == [0, STEPS]
    measure = validated[-1]["metrics"]["read_as_asked"]
    assert measure["n"] == 40 and set(measure["people"]) == set("0123456789")
    assert measure["judge"] and measure["chance"] == 0.1
    assert (whole_run / "validation" / f"step_{STEPS:06d}_digits.png").stat().st_size > 1000
    assert (whole_run / "validation" / "trajectories.png").is_file()


@pytest.mark.slow  # SDXL's is not: tests/training/test_resume.py
def test_a_run_that_was_killed_ends_as_one_that_was_not(whole_run, tmp_path):
    words = command(tmp_path, small())
    with subprocess.Popen(words, cwd=ROOT, start_new_session=True) as process:
        deadline = time.time() + 120
        while not (tmp_path / "checkpoints" / str(EVERY)).is_dir() and time.time() < deadline:
            assert process.poll() is None
            time.sleep(0.005)
        os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert train(small(), tmp_path)
    ours, theirs = trained(tmp_path), trained(whole_run)
    assert ours.keys() == theirs.keys()
    for path in ours:
        assert np.array_equal(ours[path], theirs[path]), path
    strip = ("images_per_second", "data_wait", "mfu")
    logs = [rows(run / "metrics.jsonl") for run in (tmp_path, whole_run)]
    ours, theirs = ([{k: v for k, v in r.items() if k not in strip} for r in log] for log in logs)
    assert ours == theirs
    files = [run / "validation" / "metrics.jsonl" for run in (tmp_path, whole_run)]
    assert files[0].read_text() == files[1].read_text()


def test_a_finished_run_opens_and_is_evaluated(whole_run, tmp_path, capsys):
    run = open_run(whole_run)
    assert run.step == STEPS and run.system.label == "digits"
    evaluate.main(["--run", str(whole_run), "--out", str(tmp_path), "--pictures"])
    assert "read as asked" in capsys.readouterr().out
    (row,) = json.loads((tmp_path / "metrics.json").read_text())
    last = rows(whole_run / "validation" / "metrics.jsonl")[-1]
    assert row["metrics"]["read_as_asked"]["mean"] == last["metrics"]["read_as_asked"]["mean"]
    index = json.loads((tmp_path / "pictures" / "index.json").read_text())
    assert len(index) == 10
    for row in index:
        found = [source_type(tmp_path / "pictures" / row[key]) for key in ("picture", "reference")]
        assert found == [GENERATED, None]  # references are real pictures
    with pytest.raises(SystemExit, match="--data: the run's system .* has no such setting"):
        evaluate.main(["--run", str(whole_run), "--data", "elsewhere"])
    with pytest.raises(SystemExit, match="--people-per-set: the run's system"):
        evaluate.main(["--run", str(whole_run), "--people-per-set", "3"])


def test_dropping_the_condition_is_the_field_s_own():
    system = open_system(small())
    batch = jax.tree.map(np.asarray, next(system.examples(0)))
    dropped = system.drop(batch, np.arange(16) < 5)
    assert (dropped["label"][:5] == 10).all()
    assert np.array_equal(dropped["label"][5:], batch["label"][5:])


def test_the_sampler_s_noise_is_not_the_first_again(monkeypatch):
    config, seen = small(), []
    config.validation_scheduler = "ddpm"
    system = open_system(config)

    def sample(model, inputs, noise, plan, keys):
        seen.append((noise, keys))
        return np.zeros(noise.shape)

    monkeypatch.setattr(system, "sample", sample)
    open_evaluation(system)(system.model, 0)
    noise, keys = seen[0]
    drawn = jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, 0), noise.shape[1:]))
    assert noise.shape[0] == 40 and not np.isclose(noise, drawn(keys)).all(axis=(1, 2, 3)).any()


def test_commands_report_what_this_system_lacks():
    with pytest.raises(ValueError, match="no encoder of digits is frozen"):
        encoders(with_batch(small(), 2, 1), make_mesh(jax.devices()[:1]))
    with pytest.raises(SystemExit, match="has nothing to cache"):
        features.main([f"--config={FILE.parent}/digits_config.py"])


def test_aot_builds_the_same_step():
    config, mesh = small(), make_mesh(jax.devices()[:1])
    program = training(with_batch(config, 16, 1), mesh, cached=False)
    parts = assemble(open_system(config, mesh), mesh)
    batch = next(parts.system.examples(0))
    real = flop_count.of_function(parts.step, parts.state, parts.frozen, batch, step_spec(mesh))
    assert program.flops() == real > 1e6 and program.label == "digits"
    sizes = program.bytes_per_chip()
    assert sizes["trained weights"] > 0 and sizes["frozen weights"] == 0


@pytest.mark.slow
def test_devices_and_processes_change_nothing(tmp_path):
    finish(start([tmp_path, "digits", "", *MESHES], 8))
    (tmp_path / "two").mkdir()
    two_processes(29461, tmp_path / "two", "digits", "", "4x2f")
    (tmp_path / "two" / "4x2f.npz").rename(tmp_path / "two.npz")
    for name in [*MESHES[1:], "two"]:
        assert_same(tmp_path, name)


@pytest.mark.slow
def test_of_two_hosts_one_dies(tmp_path):
    """The other ends and names it; the same command resumes to the same end."""
    options = ["--config.steps=60", "--config.batch_size=16", "--config.log_every=1"]
    options += ["--config.checkpoint_every=5", "--config.validation_every=0", "--config.fsdp=2"]

    def command(name):
        config = f"--config={FILE.parent}/digits_config.py"
        return ["-m", "persongen_jax.train", config, f"--workdir={tmp_path / name}", *options]

    ends = Two(29462, *command("whole"), devices=2).finish()
    assert [code for code, *_ in ends] == [0, 0], ends
    two = Two(29463, *command("cut"), devices=2)
    two.wait_until((tmp_path / "cut" / "checkpoints" / "5").is_dir)
    two.processes[1].kill()
    (code, _, errors), _ = two.finish(timeout=120)
    assert code != 0 and re.search(r"process 1 on \S+ is lost", errors), errors
    ends = Two(29464, *command("cut"), devices=2).finish()
    assert [code for code, *_ in ends] == [0, 0], ends
    logs = [rows(tmp_path / name / "metrics.jsonl") for name in ("whole", "cut")]
    ours, theirs = ([(row["step"], row["loss"]) for row in log] for log in logs)
    assert ours == theirs and len(ours) == 60


@pytest.mark.slow
def test_faults_change_no_number(whole_run, tmp_path):
    """A damaged checkpoint is skipped; a step that is not finite changes nothing."""
    shutil.copytree(whole_run, tmp_path / "run")
    flip_a_bit(largest_file(tmp_path / "run" / "checkpoints" / str(STEPS)))
    again = command(tmp_path / "run", small())
    told = subprocess.run(again, check=True, cwd=ROOT, capture_output=True, text=True)
    assert "is damaged" in told.stderr
    ours, theirs = trained(tmp_path / "run"), trained(whole_run)
    assert all(np.array_equal(ours[path], theirs[path]) for path in theirs)

    system = open_system(small())
    parts = assemble(system, make_mesh(jax.devices()[:1]))
    batch = next(system.examples(0))
    batch["pixel_values"] = np.full_like(batch["pixel_values"], np.nan)
    before = jax.tree.map(np.asarray, parts.state.trainable)
    state, metrics = parts.step(parts.state, parts.frozen, batch, np.int32(0))
    assert metrics["skipped"] == 1
    assert all(np.array_equal(state.trainable[path], before[path]) for path in before)


@pytest.mark.slow
def test_a_study_of_it(tmp_path):
    file = str(FILE.parent / "digits_config.py")
    (tmp_path / "study.py").write_text(
        "from ml_collections import ConfigDict\n"
        "def get_config():\n"
        f"    return ConfigDict(dict(workdir={str(tmp_path / 'out')!r}, seeds=(0, 1),\n"
        f"        methods=('digits',), config_files={file!r}, only=ConfigDict(),\n"
        "        overrides=ConfigDict(dict(steps=4, batch_size=8, validation_steps=2,\n"
        "            validation_every=4, checkpoint_every=4)),\n"
        "        evaluation=ConfigDict(dict(seed=1)), cost_rounds=1, cost_steps=2,\n"
        f"        cost_data='', full_size_files=ConfigDict()))\n"
    )
    study.main([f"--config={tmp_path / 'study.py'}"])
    page = (tmp_path / "out" / "study.md").read_text()
    assert "read as asked" in page and "| digits |" in page and "nearest neighbours" in page
    assert (tmp_path / "out" / "sheet_digits.png").is_file()
