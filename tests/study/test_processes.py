"""A study's processes: stopped, failed, alone in their folder, and a whole study resumed."""

import csv
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from PIL import Image

from persongen_jax.metrics.measures import join_runs
from persongen_jax.study import __main__ as study_module
from persongen_jax.study.__main__ import (
    Interrupted,
    Processes,
    run_study,
)
from persongen_jax.training.stopping import StopSignals
from tests.evaluation.conftest import encoders  # noqa: F401
from tests.helpers.training_runs import small_base
from tests.study.studies import (
    METHODS,
    SEEDS,
    STEPS,
    write_trainings,
)

SLEEP = ("-n", "1", "-r", "1", "import time; time.sleep(100)")


def test_a_stop_is_passed_on(tmp_path):
    start = time.monotonic()
    with open(tmp_path / "lock", "w") as lock, StopSignals() as stop:
        processes = Processes(stop, lock)
        processes("timeit", "-n", "1", "-r", "1", "pass")
        timer = threading.Timer(1, os.kill, (os.getpid(), signal.SIGTERM))
        timer.start()
        with pytest.raises(Interrupted):
            processes("timeit", *SLEEP)
        with pytest.raises(Interrupted):
            processes("timeit", "pass")  # nothing is started any more
    assert time.monotonic() - start < 90


def test_a_failure_is_told(tmp_path, capfd):
    with open(tmp_path / "lock", "w") as lock, StopSignals() as stop:
        with pytest.raises(ChildProcessError, match="timeit.*code 1"):
            Processes(stop, lock)("timeit", "-n", "1", "1/0")
    assert "ZeroDivisionError" in capfd.readouterr().err


def test_two_studies_do_not_share_a_folder(study, tmp_path):
    """Nor does a study resume while a process that it left behind still trains there."""
    folder = tmp_path / "study"
    folder.mkdir()
    with open(folder / "lock", "w") as lock:
        study_module.fcntl.flock(lock, study_module.fcntl.LOCK_EX)
        with pytest.raises(BlockingIOError, match="still using it"):
            run_study(study)
        left = subprocess.Popen([sys.executable, "-m", "timeit", *SLEEP], pass_fds=[lock.fileno()])
    try:
        with pytest.raises(BlockingIOError, match="still using it"):
            run_study(study)
    finally:
        left.kill()
        left.wait()


@pytest.mark.slow
def test_a_study_is_stopped_goes_on_and_compares(
    tmp_path,
    tmp_path_factory,
    encoders,  # noqa: F811
):
    prompts = tmp_path / "prompts.json"
    prompts.write_text(
        json.dumps([{"general": "a photo of a {word} img", "background": "a beach"}])
    )
    base = small_base(tmp_path_factory)
    write_trainings(
        tmp_path,
        base=str(base),
        validation_prompts=str(prompts),
        clip=str(encoders / "clip"),
        face_net=str(encoders / "face_net"),
        face_detector=f"keypoints:{encoders / 'face_detector'}",
    )
    (tmp_path / "study.py").write_text(
        "from configs.study_mini import get_config as mini\n\n\n"
        "def get_config():\n"
        "    config = mini()\n"
        f"    config.workdir = {str(tmp_path / 'study')!r}\n"
        f"    config.methods, config.seeds = {METHODS!r}, {SEEDS!r}\n"
        f"    config.config_files = {str(tmp_path / '{}.py')!r}\n"
        "    config.full_size_files, config.cost_data = type(config)(), ''\n"
        "    config.cost_rounds, config.cost_steps = 2, 1\n"
        f"    config.overrides.steps = {STEPS}\n"
        "    config.overrides.validation_every = config.overrides.checkpoint_every = 1\n"
        "    config.evaluation.people_per_set = config.evaluation.batch = 2\n"
        "    config.evaluation.images_each = 1\n"
        "    return config\n"
    )
    command = [
        sys.executable,
        "-m",
        "persongen_jax.study",
        "--config",
        str(tmp_path / "study.py"),
    ]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    process = subprocess.Popen(command, **pipes)
    second = tmp_path / "study" / "photomaker_bg" / "seed_0"
    while process.poll() is None and not (second / "validation" / "metrics.jsonl").exists():
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    words, _ = process.communicate(timeout=600)
    assert process.returncode == 0 and "stopped; the same command resumes" in words, words
    first = tmp_path / "study" / "photomaker" / "seed_0" / "checkpoints" / str(STEPS)
    made = first.stat().st_mtime_ns

    done = subprocess.run(command, **pipes, timeout=1800)
    assert done.returncode == 0, done.stdout
    assert "[1/4] photomaker, seed 0: finished" in done.stdout
    assert first.stat().st_mtime_ns == made  # not trained again
    out = tmp_path / "study"
    with open(out / "comparison.csv", newline="") as file:
        rows = {(row["set"], row["run"]): row for row in csv.DictReader(file)}
    assert set(rows) == {(s, m) for s in ("in_train", "out_of_train") for m in METHODS}
    for (set_name, name), row in rows.items():
        finals = [
            json.loads((out / name / f"seed_{s}/evaluation/step_000002/metrics.json").read_text())
            for s in SEEDS
        ]
        own = [entry for final in finals for entry in final if entry["set"] == set_name]
        for metric in ("clip_t", "face_sim", "rank1_10"):
            wanted = join_runs([entry["metrics"][metric] for entry in own])
            assert float(row[metric]) == pytest.approx(wanted["mean"])
            assert int(row[f"{metric}_n"]) == wanted["n"] == 4  # 2 seeds, 2 people, a picture each
    costs = json.loads((out / "cost.json").read_text())["methods"]
    trained = {name: sum(cost["trained"].values()) for name, cost in costs.items()}
    assert trained["photomaker_bg"] > trained["photomaker"] > 0
    assert costs["photomaker"]["relative"] == 1 and costs["photomaker_bg"]["relative"] > 0
    assert Image.open(out / "sheet_in_train.png").width > 3 * 128
    again = subprocess.run(command, **pipes, timeout=600)
    assert again.stdout.count(": finished") == 4 and "measuring" not in again.stdout
