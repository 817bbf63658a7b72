"""Faults in long runs: a kill during a save, a full disk, damage, NaN, signals, new settings."""

import contextlib
import io
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from PIL import Image

from persongen_jax import train
from persongen_jax.training import integrity
from persongen_jax.training.bad_steps import NonFinite
from persongen_jax.training.checkpoint import Checkpoints, SaveFailed, find_run, is_intact
from persongen_jax.training.log import EventFile, RetryingFile
from persongen_jax.training.partition import split_model
from persongen_jax.training.step import TrainState, make_train_step
from tests.helpers.training_runs import STEPS, metrics, small_base, small_config, whole_run
from tests.training.test_checkpoint import flip_a_bit, largest_file
from tests.training.test_step import Fit


class Words(logging.Handler):
    """Inside the ``with``, the package's warnings, a list of lines."""

    def __enter__(self):
        self.lines = []
        logging.getLogger("persongen_jax").addHandler(self)
        return self.lines

    def __exit__(self, *_):
        logging.getLogger("persongen_jax").removeHandler(self)

    def emit(self, record):
        self.lines.append(record.getMessage())


# ---- Killed while it saves ---------------------------------------------------------------------

SAVES_ALL_THE_TIME = """
import sys
import numpy as np
from persongen_jax.training.checkpoint import Checkpoints

checkpoints = Checkpoints(sys.argv[1], keep=2)
assert checkpoints.newest() is None
for step in range(1, 10_000):
    array = np.random.default_rng(step).standard_normal(2_000_000, np.float32)
    checkpoints.save(step, {"a": array}, {"count": np.full(1, step)}, {})
"""


def test_sigkill_during_a_save(tmp_path):
    folder = tmp_path / "checkpoints"
    process = subprocess.Popen([sys.executable, "-c", SAVES_ALL_THE_TIME, str(tmp_path)])
    deadline = time.time() + 300
    while True:
        assert process.poll() is None and time.time() < deadline
        complete = [int(p.name) for p in folder.glob("*") if p.name.isdigit()]
        if max(complete, default=0) >= 2:
            process.send_signal(signal.SIGSTOP)
            if list(folder.glob("*.saving*")):  # it is in the middle of a save
                break
            process.send_signal(signal.SIGCONT)
        time.sleep(0.005)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    (half,) = folder.glob("*.saving*")
    with Words() as words, Checkpoints(tmp_path, keep=2) as checkpoints:
        step = checkpoints.newest()
    assert words == [f"{half}: incomplete checkpoint, removed"]
    assert step == int(half.name.split(".")[0]) - 1 >= 2
    assert is_intact(folder / str(step)) and not half.exists()


# ---- A full disk -------------------------------------------------------------------------------


@contextlib.contextmanager
def small_disk(folder, options):
    """A separate file system in memory, so that it can be full."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    if not shutil.which("mount"):
        pytest.skip("there is no mount command, and so no small disk")
    mounted = subprocess.run(command, capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder):
    """Leave no byte; or no inode for a new file, where these are limited."""
    if os.statvfs(folder).f_files < 1000:
        with contextlib.suppress(OSError):
            for n in range(1000):
                (folder / f"ballast{n}").touch()
        return
    with open(folder / "ballast", "wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12):
            with contextlib.suppress(OSError):
                while file.write(bytes(size)) == size:
                    pass


def make_room(folder):
    for path in folder.glob("ballast*"):
        path.unlink()


@pytest.mark.parametrize("options", ["size=8m,nr_inodes=10k", "size=8m,nr_inodes=150"])
def test_a_full_disk_leaves_what_was_saved(options, tmp_path):
    rng = np.random.default_rng(0)
    parts = ({"a": rng.standard_normal(300_000, np.float32)}, {"count": np.zeros(1)}, {})
    with small_disk(tmp_path / "disk", options) as disk, Words() as words:
        checkpoints = Checkpoints(disk, keep=1)
        checkpoints.save(1, *parts)
        assert checkpoints.has(1) and not words
        fill(disk)
        checkpoints.save(2, *parts)
        assert not checkpoints.has(2) and checkpoints.has(1)
        assert f"{disk}/checkpoints: the checkpoint of step 2 could not be saved" in words[0]
        assert "no space left" in words[0].lower() and "takes up to 1.2 MB" in words[0]
        assert is_intact(checkpoints.folder / "1") and not (checkpoints.folder / "2").exists()

        make_room(disk)
        checkpoints.save(3, *parts)
        assert checkpoints.has(3) and len(words) == 1
        assert [p.name for p in checkpoints.folder.iterdir()] == ["3"]

        fill(disk)
        checkpoints.save(4, *parts)
        with pytest.raises(SaveFailed, match="step 4 could not be saved.*Free some space"):
            checkpoints.close()
        assert find_run(disk) == (disk, 3)


def test_the_log_waits_for_room(tmp_path):
    lines = [f"{n}{' ' * 3000}\n".encode() for n in range(12)]
    with small_disk(tmp_path / "disk", "size=1m,nr_inodes=10k") as disk, Words() as words:
        file = RetryingFile(disk / "metrics.jsonl")
        for n, line in enumerate(lines):
            if n == 3:
                fill(disk)
            if n == 8:
                make_room(disk)
            file.write(line)
            file.flush()
        file.close()
        assert (disk / "metrics.jsonl").read_bytes() == b"".join(lines)
    assert len(words) == 1 and "metrics.jsonl: no space left" in words[0]


def test_events_wait_for_room_and_a_resumed_run_takes_the_place_of_what_follows(tmp_path):
    """As TensorBoard itself reads them, which checks every event's checksum."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    picture = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    with small_disk(tmp_path / "disk", "size=1m,nr_inodes=10k") as disk, Words() as words:
        events = EventFile(disk)
        for step in range(1, 6):
            if step == 2:
                fill(disk)
            if step == 4:
                make_room(disk)
            events.scalars("training", {"step": step, "loss": step / 4}, step)
            events.image("validation/in_train", picture, step)
        events.close()
        resumed = EventFile(disk, start=3)
        resumed.scalar("training/loss", 9.0, 4)
        resumed.close()
        read = accumulator.EventAccumulator(str(disk)).Reload()
        losses = [(event.step, event.value) for event in read.Scalars("training/loss")]
        shown = read.Images("validation/in_train")
    assert losses == [(1, 0.25), (2, 0.5), (3, 0.75), (4, 9.0)]
    assert [event.step for event in shown] == [1, 2, 3]
    with Image.open(io.BytesIO(shown[1].encoded_image_string)) as image:
        np.testing.assert_array_equal(np.asarray(image), picture)
    assert len(words) == 1 and "no space left" in words[0]


# ---- A step that is not finite -----------------------------------------------------------------


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


# ---- A run that has bad luck -------------------------------------------------------------------


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
