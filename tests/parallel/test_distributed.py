"""Several processes: how they are detected, what one does for all, and what happens to the rest
when one is stopped or dies."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from persongen_jax.parallel import distributed
from persongen_jax.training.stopping import StopSignals
from tests.helpers.made_once import made_once
from tests.helpers.training_runs import small_base, small_config

PLAIN = {
    "JAX_COORDINATOR_ADDRESS": "host0:1234",
    "JAX_NUM_PROCESSES": "4",
    "JAX_PROCESS_ID": "3",
}
SLURM = {
    "SLURM_JOB_ID": "5000",
    "SLURM_STEP_NODELIST": "node[007-009,012],gpu3",
    "SLURM_STEP_NUM_TASKS": "5",
    "SLURM_PROCID": "2",
    "SLURM_LOCALID": "0",
}


# ---- The environment ---------------------------------------------------------------------------


def test_plain_variables():
    wanted = {"coordinator_address": "host0:1234", "num_processes": 4, "process_id": 3}
    assert wanted.items() <= distributed.jax_variables(PLAIN).items()
    indexed = {**PLAIN, "JOB_COMPLETION_INDEX": "2"}
    assert distributed.jax_variables(indexed)["process_id"] == 3
    del indexed["JAX_PROCESS_ID"]
    assert distributed.jax_variables(indexed)["process_id"] == 2
    # Any indexed job of Kubernetes has this one.
    assert distributed.jax_variables({"JOB_COMPLETION_INDEX": "2"}) is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"JAX_PROCESS_ID": ""}, "without JAX_PROCESS_ID"),
        ({"JAX_COORDINATOR_ADDRESS": "", "JAX_PROCESS_ID": ""}, "ADDRESS, JAX_PROCESS_ID"),
        ({"JAX_COORDINATOR_ADDRESS": "host0"}, "give HOST:PORT"),
        ({"JAX_PROCESS_ID": "4"}, "JAX_PROCESS_ID=4 must be below JAX_NUM_PROCESSES=4"),
        ({"JAX_NUM_PROCESSES": "four"}, "JAX_NUM_PROCESSES='four' is not a whole number"),
    ],
)
def test_half_an_environment_is_refused(change, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        distributed.jax_variables({**PLAIN, **change})


def test_slurm_steps():
    found = distributed.slurm_step(SLURM)
    assert found["coordinator_address"] == "node007:62344"
    assert (found["num_processes"], found["process_id"]) == (5, 2)
    for nodes in ("node007", "node007,node008"):
        found = distributed.slurm_step({**SLURM, "SLURM_STEP_NODELIST": nodes})
        assert found["coordinator_address"].startswith("node007:")
    # One task, or a job's script outside srun.
    assert distributed.slurm_step({**SLURM, "SLURM_STEP_NUM_TASKS": "1"}) is None
    assert distributed.slurm_step({"SLURM_JOB_ID": "5000", "SLURM_NTASKS": "5"}) is None
    with pytest.raises(ValueError, match="--ntasks-per-node=1"):
        distributed.slurm_step({**SLURM, "SLURM_LOCALID": "1"})


def test_one_process_when_nothing_says_otherwise():
    distributed.initialize({"JAX_PLATFORMS": "cpu"})
    assert jax.process_count() == 1 and not jax.distributed.is_initialized()
    assert (
        distributed.is_first()
        and distributed.broadcast_from_first(True)
        and not distributed.broadcast_from_first(False)
    )
    with pytest.raises(ValueError, match="PERSONGEN_HEARTBEAT_SECONDS='soon'"):
        distributed.initialize({"PERSONGEN_HEARTBEAT_SECONDS": "soon"})


def test_one_process_keeps_its_words_and_errors(capsys):
    with pytest.raises(KeyError), distributed.run_distributed():
        print("heard")
        raise KeyError("mine")
    assert capsys.readouterr().out == "heard\n"


def test_one_process_stops_by_its_own_signal():
    with StopSignals() as stop:
        assert not stop.sync()
        signal.raise_signal(signal.SIGTERM)
        assert stop and stop.sync()


# ---- Real processes ----------------------------------------------------------------------------

TALK = """
import os, sys, time
from pathlib import Path
from persongen_jax.parallel import distributed
with distributed.run_distributed():
    import jax
    from persongen_jax.training.stopping import StopSignals
    me, folder = jax.process_index(), Path(sys.argv[1])
    assert distributed.broadcast_from_first(me == 0)
    assert not distributed.broadcast_from_first(me == 1)
    assert (distributed.log_folder(folder) == folder) == (me == 0)
    print("spoken by", me)
    with StopSignals() as stop:
        for step in range(1, 2000):
            if stop.sync():
                break
            if step == 5:
                (folder / f"ready{me}").touch()
            if "fail" in sys.argv and me == 1 and step == 20:
                raise ValueError("process 1 cannot go on")
            time.sleep(0.05)
    (folder / f"step{me}").write_text(str(step))
"""


class Two:
    """The same program in two processes, each on ``devices`` devices."""

    def __init__(self, port, *command, devices=1):
        self.processes, words = [], [sys.executable, *map(str, command)]
        for i in range(2):
            environment = {**os.environ, "PERSONGEN_HEARTBEAT_SECONDS": "10"}
            environment |= {"JAX_COORDINATOR_ADDRESS": f"localhost:{port}"}
            environment |= {"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": str(i)}
            environment["XLA_FLAGS"] += f" --xla_force_host_platform_device_count={devices}"
            pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
            self.processes.append(subprocess.Popen(words, env=environment, **pipes))

    def wait_until(self, done, timeout=600):
        end = time.monotonic() + timeout
        while not done():
            if any(process.poll() is not None for process in self.processes):
                raise AssertionError(self.finish())
            assert time.monotonic() < end
            time.sleep(0.05)

    def finish(self, timeout=600):
        """((exit code, output, errors) of each)."""
        try:
            words = [process.communicate(timeout=timeout) for process in self.processes]
        finally:
            for process in self.processes:
                process.kill()
        return [(p.returncode, *w) for p, w in zip(self.processes, words, strict=True)]


def test_all_stop_at_the_same_step_and_one_speaks(tmp_path):
    two = Two(29421, "-c", TALK, tmp_path)
    two.wait_until(lambda: all((tmp_path / f"ready{i}").exists() for i in range(2)))
    two.processes[1].send_signal(signal.SIGTERM)
    (code0, out0, errors0), (code1, out1, errors1) = two.finish()
    assert (code0, code1) == (0, 0), errors0 + errors1
    steps = [int((tmp_path / f"step{i}").read_text()) for i in range(2)]
    assert steps[0] == steps[1] < 1999
    assert "spoken by 0" in out0 and "spoken by" not in out1
    assert "process 0 of 2, 1 devices each" in out0


@pytest.mark.slow
def test_an_error_of_one_ends_all(tmp_path):
    two = Two(29422, "-c", TALK, tmp_path, "fail")
    (code0, _, errors0), (code1, _, errors1) = two.finish(timeout=120)
    assert (code0, code1) == (1, 1)
    assert "error: process 1 cannot go on" in errors1
    assert re.search(r"error: of 2 processes, process 1 on \S+ ended with an error", errors0)


def train_command(config, workdir, *options):
    changed = ("base", "data", "loader", "batch_size", "rank", "warmup_steps", "ema_decay")
    changed += ("clip_norm", "steps", "log_every", "checkpoint_every")
    command = ["-m", "persongen_jax.train", "--config", "configs/first_light.py"]
    command += ["--workdir", workdir, *(f"--config.{name}={config[name]}" for name in changed)]
    return [*command, "--config.fsdp=2", *options]


def rows(workdir):
    path = workdir / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def losses(workdir):
    return [(row["step"], row["loss"]) for row in rows(workdir)]


@pytest.fixture(scope="module")
def thirty_steps(tmp_path_factory, sample_photos):
    config = small_config(small_base(tmp_path_factory), sample_photos)
    config.steps = 30
    return config


@pytest.fixture(scope="module")
def whole(thirty_steps, tmp_path_factory):
    """The run of two hosts that both live."""

    def train(workdir):
        ends = Two(29431, *train_command(thirty_steps, workdir), devices=2).finish()
        assert [code for code, *_ in ends] == [0, 0], ends

    return made_once(tmp_path_factory, "two-hosts", train)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_two_hosts_of_which_one_dies(victim, thirty_steps, whole, tmp_path):
    """The other names it and ends within the bound; the same command goes on to the same end."""
    command = train_command(thirty_steps, tmp_path / "cut")
    two = Two(29432 + 2 * victim, *command, devices=2)
    # A checkpoint gets its name when it is complete, some steps after its own.
    two.wait_until((tmp_path / "cut" / "checkpoints" / "5").is_dir)
    two.processes[victim].kill()
    killed = time.monotonic()
    ends = two.finish(timeout=120)
    assert time.monotonic() - killed < 45  # 10 s of silence, 20 s of JAX's own watch, and slack
    code, _, errors = ends[1 - victim]
    assert code != 0
    if victim == 1:
        assert re.search(r"of 2 processes, process 1 on \S+ is lost", errors), errors
        assert "the same command on all hosts resumes from the last checkpoint" in errors
    else:
        # Process 0 held the store that the others communicate through: JAX itself ends them.
        assert "leader task" in errors or "process 0" in errors, errors
    (first, out, errors), (second, *_) = Two(29433 + 2 * victim, *command, devices=2).finish()
    assert (first, second) == (0, 0), errors
    assert re.search(r"continuing from step (5|10|15|20|25)\n", out), out
    assert losses(tmp_path / "cut") == losses(whole)


@pytest.mark.slow
def test_sigterm_to_one_host_saves_on_all(tmp_path_factory, tmp_path, sample_photos):
    """With validation in between, whose images all hosts generate and the first writes."""
    config = small_config(small_base(tmp_path_factory), sample_photos)
    config.steps, config.checkpoint_every = 30, 100
    options = [f"--config.validate_in_train={sample_photos}", "--config.validation_every=4"]
    options += ["--config.validation_people=1", "--config.validation_images=1"]
    options += ["--config.validation_steps=2", "--config.validation_merge_step=0"]
    command = train_command(config, tmp_path, *options)
    two = Two(29441, *command, devices=2)
    two.wait_until(lambda: rows(tmp_path)[-1:] and rows(tmp_path)[-1]["step"] >= 6)
    two.processes[1].send_signal(signal.SIGTERM)
    (code0, out, errors0), (code1, silent, errors1) = two.finish()
    assert (code0, code1) == (0, 0), errors0 + errors1
    (step,) = re.findall(r"saved at step (\d+); the same command continues", out)
    assert "saved at step" not in silent
    assert 6 <= int(step) < 30 and (tmp_path / "checkpoints" / step).is_dir()
    assert (tmp_path / "validation" / "step_000004_in_train.png").is_file()
    # A single host resumes from what two have saved.
    from persongen_jax.parallel.sharding import make_mesh, replicated
    from persongen_jax.training.trained import load_trained

    arrays, saved = load_trained(tmp_path, replicated(make_mesh()))
    assert saved["fsdp"] == 2 and all(np.isfinite(x).all() for x in arrays.values())
