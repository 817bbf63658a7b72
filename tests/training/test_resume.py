"""Killed and stopped at random steps: a resumed run equals one never interrupted."""

import random
import re
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from tests.helpers.training_runs import STEPS, metrics, small_base, small_config, whole_run


@pytest.fixture(scope="module")
def whole(tmp_path_factory, sample_photos):
    return whole_run(tmp_path_factory, sample_photos)


class Run:
    """The command, in processes one after another; their output and exit codes."""

    def __init__(self, config, workdir):
        self.workdir, self.words, self.codes = workdir, [], []
        changed = ("base", "data", "loader", "batch_size", "rank", "warmup_steps", "ema_decay")
        changed += ("clip_norm", "steps", "log_every", "checkpoint_every")
        self.command = [sys.executable, "-m", "persongen_jax.train"]
        self.command += ["--config", "configs/first_light.py", "--workdir", str(workdir)]
        self.command += [f"--config.{name}={config[name]}" for name in changed]

    def start(self):
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(self.command, **pipes)

    def finish(self, process):
        out, errors = process.communicate(timeout=600)
        self.words.append(out)
        self.codes.append(process.returncode)
        return out + errors[-2000:]

    def interrupt(self, number, step):
        """Send a signal as soon as the log has reached ``step``; seconds until the end."""
        process = self.start()
        path = self.workdir / "metrics.jsonl"
        while process.poll() is None and not (
            path.exists() and f'"step": {step},' in path.read_text()
        ):
            time.sleep(0.01)
        assert process.poll() is None, self.finish(process)
        sent = time.perf_counter()
        process.send_signal(number)
        words = self.finish(process)
        assert process.returncode in (0, -number), words
        return time.perf_counter() - sent


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory, sample_photos):
    config = small_config(small_base(tmp_path_factory), sample_photos)
    run = Run(config, tmp_path_factory.mktemp("interrupted"))
    # Lines of the log come every 3 steps.
    run.killed_at = 3 * random.randrange(1, 6)
    run.interrupt(signal.SIGKILL, run.killed_at)
    run.ended_at = 3 * random.randrange(7, 10)
    run.seconds = run.interrupt(signal.SIGTERM, run.ended_at)
    run.saved = {int(path.name) for path in (run.workdir / "checkpoints").iterdir()}
    words = run.finish(run.start())
    assert run.codes[-1] == 0, words
    return run


def test_what_was_interrupted_was_running(interrupted):
    assert interrupted.codes == [-signal.SIGKILL, 0, 0]


def test_sigterm_saves_and_ends_well(interrupted):
    (step,) = re.findall(r"saved at step (\d+); the same command continues", interrupted.words[1])
    assert interrupted.ended_at <= int(step) < STEPS
    assert int(step) in interrupted.saved
    assert f"continuing from step {step}" in interrupted.words[2]
    assert interrupted.seconds < 30


@pytest.mark.parametrize("item", ["trainable", "opt_state", "ema"])
def test_arrays_are_bit_identical(item, whole, interrupted):
    """The uninterrupted run also validated and wrote events: neither affects what is trained."""
    first, second = (
        ocp.StandardCheckpointer().restore(workdir / "checkpoints" / str(STEPS) / item)
        for workdir in (whole, interrupted.workdir)
    )
    assert jax.tree.structure(first) == jax.tree.structure(second)
    at = f"killed at {interrupted.killed_at}, ended at {interrupted.ended_at}"
    for (path, a), b in zip(jax.tree.leaves_with_path(first), jax.tree.leaves(second), strict=True):
        assert np.array_equal(a, b), f"{jax.tree_util.keystr(path)}, {at}"


def test_metrics_are_the_same(whole, interrupted):
    rows = metrics(whole)
    assert [row["step"] for row in rows] == [*range(3, STEPS, 3), STEPS]
    assert metrics(interrupted.workdir) == rows


def test_other_data_or_batches_are_refused(interrupted, tmp_path_factory, sample_photos):
    from persongen_jax import train

    config = small_config(small_base(tmp_path_factory), sample_photos)
    config.batch_size = 2
    with pytest.raises(ValueError, match="batch_size: 4 -> 2"):
        train.train(config, interrupted.workdir)
