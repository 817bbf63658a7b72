"""One run at a time in a working directory, and the conditions for resuming."""

import errno
import json
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from configs.first_light import get_config
from persongen_jax.config_ranges import check_ranges
from persongen_jax.settings import check_resumable, check_steps, pin_schedule_steps
from persongen_jax.systems.open import system_class
from persongen_jax.systems.read_keys import ReadKeys
from persongen_jax.systems.sdxl_config import sdxl_defaults
from persongen_jax.training import workdir_lock
from persongen_jax.training.checkpoint import Checkpoints, CorruptCheckpoint, find_run
from persongen_jax.training.optimizer import learning_rate
from persongen_jax.training.unused_keys import unused_keys
from persongen_jax.training.workdir_lock import NAME, WorkdirInUse, lock_workdir

HOST = socket.gethostname()


def write_lock(workdir, process, host=HOST):
    (workdir / NAME).write_text(json.dumps({"process": process, "host": host}))


@pytest.fixture
def gone():
    """The id of a process that has ended."""
    process = multiprocessing.get_context("spawn").Process(target=int)
    process.start()
    process.join()
    return process.pid


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(workdir_lock, "BEAT", 0.05)
    monkeypatch.setattr(workdir_lock, "PATIENCE", 0.3)


# ---- The lock ----------------------------------------------------------------------------------


def test_a_second_run_names_the_first(tmp_path):
    with lock_workdir(tmp_path / "run"):
        with pytest.raises(WorkdirInUse) as caught, lock_workdir(tmp_path / "run"):
            pass
        assert f"process {os.getpid()} on host {HOST} is training here" in str(caught.value)
        with lock_workdir(tmp_path / "other"):
            pass
    assert list((tmp_path / "run").iterdir()) == []
    with lock_workdir(tmp_path / "run"):
        pass


def test_an_error_in_the_run_frees_it(tmp_path):
    with pytest.raises(KeyError), lock_workdir(tmp_path):
        raise KeyError
    with lock_workdir(tmp_path):
        pass


HOLD = """
import sys, time
from pathlib import Path
from persongen_jax.training.workdir_lock import lock_workdir
with lock_workdir(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_killed_run_leaves_nothing_to_clear_away(tmp_path):
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(WorkdirInUse, match=f"process {process.pid} on host"):
            lock_workdir(tmp_path).__enter__()
        process.send_signal(signal.SIGKILL)
    assert (tmp_path / NAME).exists()
    with lock_workdir(tmp_path):
        assert json.loads((tmp_path / NAME).read_text())["process"] == os.getpid()


@pytest.mark.parametrize("left", ["", "{", "[]", '{"process": "x", "host": 3}'])
def test_a_lock_that_says_nothing_is_taken_over(left, tmp_path):
    (tmp_path / NAME).write_text(left)
    with lock_workdir(tmp_path):
        pass


def test_where_the_file_system_locks_nothing_the_process_is_looked_for(tmp_path, gone, monkeypatch):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(workdir_lock.fcntl, "flock", no_locks)
    write_lock(tmp_path, os.getppid())
    with pytest.raises(WorkdirInUse, match=f"process {os.getppid()} on host"):
        lock_workdir(tmp_path).__enter__()
    write_lock(tmp_path, gone)
    with lock_workdir(tmp_path):
        pass


def test_a_lock_of_another_host_holds_while_its_time_goes_on(tmp_path, quick):
    write_lock(tmp_path, 7, "node2")
    ended = threading.Event()

    def other_host():
        while not ended.wait(0.02):
            os.utime(tmp_path / NAME)

    beating = threading.Thread(target=other_host)
    beating.start()
    try:
        with pytest.raises(WorkdirInUse, match="process 7 on host node2 is training here"):
            lock_workdir(tmp_path).__enter__()
    finally:
        ended.set()
        beating.join()
    with lock_workdir(tmp_path):  # it is not updated
        before = (tmp_path / NAME).stat().st_mtime_ns
        deadline = time.monotonic() + 5
        while (tmp_path / NAME).stat().st_mtime_ns == before:  # ours is updated
            assert time.monotonic() < deadline
            time.sleep(0.02)


def test_a_run_that_finds_its_workdir_in_use_touches_nothing(tmp_path):
    from persongen_jax import train

    half = tmp_path / "checkpoints" / "5.saving"
    half.mkdir(parents=True)
    with lock_workdir(tmp_path), pytest.raises(ValueError, match="is training here"):
        train.train(get_config(), tmp_path)
    assert half.is_dir()


# ---- The schedule of a resumed run --------------------------------------------------------


def config_of(**keys):
    config = get_config()
    config.update({"lr_schedule": "cosine", "steps": 10, "warmup_steps": 2, **keys})
    return config


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_more_steps_keep_the_schedule(schedule):
    began = pin_schedule_steps(config_of(lr_schedule=schedule), None)
    assert began.schedule_steps == 10
    saved = began.to_dict()
    for steps in (20, 7):
        on = pin_schedule_steps(config_of(lr_schedule=schedule, steps=steps), saved)
        check_resumable("run", saved, on.to_dict())
        first, then = (learning_rate(config, 0.5) for config in (began, on))
        assert [float(first(i)) for i in range(20)] == [float(then(i)) for i in range(20)]


def test_another_end_of_the_schedule_is_another_run():
    saved = pin_schedule_steps(config_of(), None).to_dict()
    with pytest.raises(ValueError, match="schedule_steps: 10 -> 20"):
        check_resumable(
            "run", saved, pin_schedule_steps(config_of(schedule_steps=20), saved).to_dict()
        )


def test_log_lines_about_the_schedule():
    def said(start, **keys):
        return check_steps(config_of(**keys), "runs/x", start)

    assert said(0, schedule_steps=10) == said(5, schedule_steps=10) == []
    assert said(0, schedule_steps=20) == [
        "lr_schedule=cosine ends at step 20 (config.schedule_steps)"
    ]
    assert said(5, schedule_steps=10, steps=20) == [
        "lr_schedule=cosine ends at step 10 (config.schedule_steps), as at the start of this run, "
        "and the steps from there to 20 change nothing"
    ]
    # At its end a run is done; more steps would have a rate of 0.
    assert len(said(20, schedule_steps=10, steps=20)) == 1
    for start in (10, 15):
        with pytest.raises(ValueError, match="reached 0 at step 10.*start_from=runs/x"):
            said(start, schedule_steps=10, steps=20)
    assert said(15, schedule_steps=0, steps=20, lr_schedule="constant") == []


def test_fewer_steps_than_are_made_are_refused():
    with pytest.raises(ValueError, match=r"step 20 is beyond config\.steps=10; give .*steps=20"):
        check_steps(config_of(lr_schedule="constant"), "runs/x", 20)
    assert check_steps(config_of(lr_schedule="constant"), "runs/x", 10) == []


def test_the_command_refuses_fewer_steps(tmp_path, monkeypatch):
    """Before anything is opened: the base that the config names does not exist."""
    from persongen_jax import train

    config = get_config()
    config.base, config.data, config.steps = "/nowhere", "/nowhere", 20
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(20, {"a": np.ones(3)}, {"count": np.zeros(1)}, config.to_dict())
    config.steps = 10
    with pytest.raises(ValueError, match="step 20 is beyond config.steps=10"):
        train.train(config, tmp_path)
    config.steps, config.lr_schedule = 30, "cosine"
    with pytest.raises(ValueError, match="lr_schedule: 'constant' -> 'cosine'"):
        train.train(config, tmp_path)


# ---- Partial copies of checkpoints ---------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A working directory with the checkpoints of steps 1 and 2."""
    workdir = tmp_path_factory.mktemp("saved")
    with Checkpoints(workdir) as checkpoints:
        for step in (1, 2):
            arrays = {"a": np.full((200, 100), step, np.float32)}
            checkpoints.save(step, arrays, {"count": np.zeros(1)}, {"step": step})
    return workdir


HALVES = {
    "nothing": ("*", "digests.json"),
    "no digests and no config": ("config", "digests.json"),
    "no digests and no optimizer": ("opt_state", "digests.json"),
    "no digests and no list": ("_CHECKPOINT_METADATA", "digests.json"),
    "no digests and no progress": ("progress", "digests.json"),
    "no digests and no arrays": ("trainable/d", "trainable/ocdbt.process_0", "digests.json"),
    "no digests and half an item": ("trainable/manifest.ocdbt", "digests.json"),
    "no digests and no words": ("config/metadata", "digests.json"),
    "digests and no arrays": ("trainable/d",),
}


@pytest.mark.parametrize("half", HALVES)
def test_a_partial_copy_of_a_checkpoint_is_skipped(half, saved, tmp_path, caplog):
    shutil.copytree(saved, tmp_path / "run")
    folder = tmp_path / "run" / "checkpoints" / "2"
    for pattern in HALVES[half]:
        for path in folder.glob(pattern):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert find_run(tmp_path / "run")[1] == 1
    assert "checkpoints/2 is damaged" in caplog.text
    with pytest.raises(CorruptCheckpoint, match="step 2 is not intact"):
        find_run(tmp_path / "run", 2)
    with Checkpoints(tmp_path / "run") as checkpoints:
        assert checkpoints.newest() == 1
    assert (tmp_path / "run" / "checkpoints" / "2.corrupt").is_dir()


def test_files_with_names_like_steps_are_no_checkpoints(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "7").write_text("a note")
    (tmp_path / "run" / "checkpoints" / "²").mkdir()
    assert find_run(tmp_path / "run")[1] == 2


# ---- Ranges and keys without effect ------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("ema_decay", 1.5, "a number below 1"),
        ("face_loss_prob", 5.0, "a probability is 0 to 1"),
        ("drop_prob", -3.0, "a probability is 0 to 1"),
        ("warmup_steps", -5, "0 or more"),
        ("clip_norm", -1.0, "0 or more"),
        ("lr_lora", -1e-4, "0 or more"),
        ("lr_lora", float("nan"), "a finite number"),
        ("batch_size", 0, "1 or more"),
        ("steps", -3, "0 or more"),
    ],
)
def test_numbers_that_mean_nothing(key, value, said):
    config = sdxl_defaults()
    check_ranges(config)
    config[key] = value
    with pytest.raises(ValueError, match=f"config.{key}={value}: .*{said}"):
        check_ranges(config)


def test_keys_that_a_method_does_not_read():
    config = sdxl_defaults()
    read = ReadKeys(config)
    assert read.rank == config.rank and read["lora_alpha"] and read.get("absent", 3) == 3
    assert read.unread(("rank", "lora_alpha", "image_proj")) == ("image_proj",)
    config.method, config.image_proj = "photomaker", "plus"
    lines = unused_keys(config, sdxl_defaults(), set(), read.unread(("rank", "image_proj")))
    assert lines == ["without effect: config.image_proj; that needs another method than photomaker"]
    read.to_dict()
    assert read.unread(("image_proj",)) == ()


def test_keys_without_effect_are_reported():
    defaults = system_class("sdxl").defaults()
    trained = {"lora", "projections"}
    assert unused_keys(defaults, defaults, trained) == []

    def told(**keys):
        config = system_class("sdxl").defaults()
        config.update(keys)
        return unused_keys(config, defaults, trained)

    assert told(lr_lora=0.5, validation_steps=3, ema_warmup=True, ema_decay=0.9) == []
    assert told(ema_warmup=True) == [
        "without effect: config.ema_warmup; that needs config.ema_decay above 0"
    ]
    assert told(schedule_steps=5) == [
        "without effect: config.schedule_steps; that needs a decaying config.lr_schedule"
    ]
    assert told(cache_kinds=("text",)) == [
        "without effect: config.cache_kinds; that needs config.cache"
    ]
    assert told(validation_every=0, validate_in_train="x", validation_steps=3) == [
        "without effect: config.validate_in_train, validation_steps; that needs "
        "config.validation_every above 0"
    ]
    assert told(lr_body=1.0, lr_background=2.0) == [
        "without effect: config.lr_background, lr_body; this run trains lora, projections"
    ]
