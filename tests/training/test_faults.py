"""Faults in long runs: a full disk, signals, damage, steps that are not finite, new settings."""

import contextlib
import io
import os
import re
import shutil
import signal
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from persongen_jax import train
from persongen_jax.training import integrity
from persongen_jax.training.bad_steps import NonFinite
from persongen_jax.training.checkpoint import Checkpoints, find_run
from persongen_jax.training.partition import split_model
from persongen_jax.training.step import TrainState, make_train_step
from tests.helpers.training_runs import STEPS, metrics, small_base, small_config, whole_run
from tests.training.disks import Words, fill, make_room, small_disk
from tests.training.test_checkpoint import flip_a_bit, largest_file
from tests.training.test_step import Fit


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_bad_step_changes_nothing(where):
    class Rooted(Fit):
        def losses(self, model, batch, draws):
            losses = super().losses(model, batch, draws)
            if where == "gradient":
                # The root's slope at 0 is infinite: a finite loss whose gradient is not.
                losses["loss"] += jnp.sqrt(batch["zero"] * model.slope[...].sum())
            return losses

    config = Fit.defaults()
    config.ema_decay = 0.5
    system, tx = Rooted(config), optax.adam(0.1)
    graphdef, trainable, frozen, _ = split_model(system.model, system.table)
    step_fn = make_train_step(system, graphdef, tx)
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((8, 3), np.float32), rng.standard_normal(8, np.float32)
    good = {"x": x, "y": y, "zero": np.full(8, 2 / 3, np.float32)}
    bad = {**good, "x": np.where(np.arange(24).reshape(8, 3) == 5, np.nan, x)}
    if where == "gradient":
        bad = {**good, "zero": np.zeros(8, np.float32)}

    state = TrainState.create(trainable, tx, 0.5)
    outcomes, states = [], []
    for step, batch in enumerate([good, bad, good]):
        state, outcome = step_fn(state, frozen, batch, np.int32(step))
        outcomes.append({name: float(value) for name, value in outcome.items()})
        states.append(jax.tree.map(np.asarray, state))
    assert [outcome["skipped"] for outcome in outcomes] == [0, 1, 0]
    assert np.isfinite(outcomes[1]["loss"]) == (where == "gradient")
    assert not np.isfinite(outcomes[1]["grad_norm"])
    assert jax.tree.all(jax.tree.map(np.array_equal, states[0], states[1]))
    assert jax.tree.all(jax.tree.map(lambda x: np.isfinite(x).all(), states[2]))
    assert not np.array_equal(states[1].trainable["slope"], states[2].trainable["slope"])


@contextlib.contextmanager
def hooks(before=(), bad=(), in_save=()):
    """Faults at given points of a run.

    Args:
        before: step -> what is called between it and the previous step.
        bad: steps whose images are NaN.
        in_save: step -> what is called in the middle of its save.
    """
    before, in_save = dict(before), dict(in_save)

    class Watch(train.Stopwatch):
        def next_batch(self, stream, running=None):
            self.step = getattr(self, "step", start) + 1
            before.get(self.step, lambda: None)()
            batch = super().next_batch(stream, running)
            if self.step in bad:
                batch = {**batch, "pixel_values": batch["pixel_values"] * jnp.nan}
            return batch

    def write_digests(folder, write=integrity.write_digests):
        in_save.get(int(folder.name.split(".")[0]), lambda: None)()
        write(folder)

    def restore(self, step, *args, real=Checkpoints.restore):
        nonlocal start
        start = step
        return real(self, step, *args)

    start = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "Stopwatch", Watch)
        patch.setattr(integrity, "write_digests", write_digests)
        patch.setattr(Checkpoints, "restore", restore)
        yield


def run(config, workdir):
    """A run's output, and its warnings."""
    said = io.StringIO()
    with Words() as words, contextlib.redirect_stdout(said):
        train.train(config, workdir)
    return said.getvalue(), words


@pytest.fixture(scope="module")
def config(tmp_path_factory, sample_photos):
    return small_config(small_base(tmp_path_factory), sample_photos)


@pytest.fixture(scope="module")
def unlucky(tmp_path_factory, config):
    """The whole run, with a full disk at step 10, a SIGTERM in the save of step 15, and damage."""
    folder = tmp_path_factory.mktemp("unlucky") / "disk"
    with small_disk(folder, "size=256m,nr_inodes=10k") as workdir:

        def wait_and_fill():
            while not (workdir / "checkpoints" / "5").is_dir():
                time.sleep(0.01)
            fill(workdir)

        signalled = threading.Event()

        def terminate():
            os.kill(os.getpid(), signal.SIGTERM)
            signalled.set()

        # The save runs in the background: the run waits for its fault before continuing.
        before = {8: wait_and_fill, 12: lambda: make_room(workdir), 17: lambda: signalled.wait(60)}
        with hooks(before, in_save={15: terminate}):
            first = run(config, workdir)
        (ended,) = re.findall(r"saved at step (\d+); the same command continues", first[0])
        saved = sorted(int(p.name) for p in (workdir / "checkpoints").iterdir())
        flip_a_bit(largest_file(workdir / "checkpoints" / ended))
        second = run(config, workdir)
        yield workdir, first, int(ended), saved, second


@pytest.mark.slow
def test_a_run_goes_on_when_the_disk_is_full(unlucky):
    _, (_, words), _, saved, _ = unlucky
    (told,) = [line for line in words if "could not be saved" in line]
    assert "the checkpoint of step 10" in told and "the next save tries again" in told
    assert 5 in saved and 10 not in saved and 15 in saved


@pytest.mark.slow
def test_sigterm_in_a_save_ends_with_a_complete_checkpoint(unlucky):
    _, _, ended, saved, _ = unlucky
    assert 15 <= ended == saved[-1] < 20


@pytest.mark.slow
def test_a_damaged_newest_checkpoint_is_passed_over(unlucky):
    workdir, _, ended, saved, (said, words) = unlucky
    assert any(f"checkpoints/{ended} is damaged" in line for line in words)
    assert f"continuing from step {saved[-2]}" in said
    assert (workdir / "checkpoints" / f"{ended}.corrupt").is_dir()


@pytest.fixture(scope="module")
def whole(tmp_path_factory, sample_photos):
    return whole_run(tmp_path_factory, sample_photos)


@pytest.mark.slow
@pytest.mark.parametrize("item", ["trainable", "opt_state", "ema"])
def test_faults_change_no_number(item, unlucky, whole):
    first, second = (
        ocp.StandardCheckpointer().restore(workdir / "checkpoints" / str(STEPS) / item)
        for workdir in (whole, unlucky[0])
    )
    assert jax.tree.all(jax.tree.map(np.array_equal, first, second))
    assert metrics(unlucky[0]) == metrics(whole)


@pytest.mark.slow
def test_sigterm_in_the_last_validation_is_not_the_end(config, sample_photos, tmp_path):
    short = config.copy_and_resolve_references()
    short.steps, short.checkpoint_every = 1, 0  # the last step is saved all the same
    short.validate_in_train, short.validation_every = str(sample_photos), 1

    def told(self, model, step, *_):
        if step == 1:
            os.kill(os.getpid(), signal.SIGTERM)  # ends it with nothing written

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train.Validator, "__call__", told)
        assert not train.train(short, tmp_path)
        assert find_run(tmp_path) == (tmp_path, 1)
        assert not train.train(short, tmp_path)
        patch.setattr(train.Validator, "has", lambda self, step: True)
        assert train.train(short, tmp_path)


@pytest.mark.slow
def test_another_config_is_refused_before_anything_is_loaded(unlucky, config):
    workdir = unlucky[0]
    other = config.copy_and_resolve_references()
    other.batch_size, other.lr_lora, other.steps, other.base = 2, 0.5, 99, "/nowhere/small-sdxl"
    there = sorted(p.name for p in (workdir / "checkpoints").iterdir())
    with pytest.raises(ValueError, match="batch_size: 4 -> 2; lr_lora: 0.003 -> 0.5") as refused:
        train.train(other, workdir)
    assert f"--config.start_from={workdir}" in str(refused.value)
    assert there == sorted(p.name for p in (workdir / "checkpoints").iterdir())


@pytest.mark.slow
def test_bad_steps_are_skipped_counted_and_too_many_end_the_run(unlucky, config, tmp_path):
    shutil.copytree(unlucky[0], tmp_path / "run")
    longer = config.copy_and_resolve_references()
    longer.steps, longer.max_bad_steps, longer.log_every = STEPS + 20, 3, 1
    first = STEPS + 6
    with hooks(bad=[STEPS + 2, *range(first, first + 9)]), Words() as words:
        with pytest.raises(NonFinite, match=f"steps {first} to {first + 2}, 3 in a row") as ended:
            train.train(longer, tmp_path / "run")
    assert f"--config.start_from={tmp_path / 'run'}" in str(ended.value)
    assert sum("its update is skipped" in line for line in words) == 2
    rows = {row["step"]: row for row in metrics(tmp_path / "run")}
    skipped = [step for step in rows if step > STEPS and rows[step]["skipped"]]
    assert skipped[:3] == [STEPS + 2, first, first + 1]
    assert rows[STEPS + 2]["loss"] is None and rows[STEPS + 3]["loss"] > 0
    # The checkpoint of the step before the bad ones is the last, and good.
    assert find_run(tmp_path / "run")[1] == STEPS + 5
