"""The bench: its arguments, its report, and that both sides do the same work."""

import json
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from persongen_jax.bench import __main__ as bench
from persongen_jax.bench import training as bench_train
from persongen_jax.bench.report import ratios, write_report
from persongen_jax.bench.settings import (
    Row,
    check_versus,
    parse_rows,
    read_config,
    read_variant,
    torch_rows,
)
from persongen_jax.bench.worker import count_work, short_message
from persongen_jax.systems.drawn_weights import fill

CONFIG = str(Path(__file__).parents[2] / "configs/bench_mid.py")
TINY = {"base": "tiny", "size": 64, "batch_size": 2}


def test_rows_are_every_combination():
    asked = [["size=64", "batch=1,2", "remat=false,true"], ["xla=no_autotune", "cached=false"]]
    settings = parse_rows("train", CONFIG, asked)
    overrides = [setting.overrides for setting in settings]
    assert overrides[:4] == [
        {"size": 64, "batch_size": b, "remat": remat} for b in (1, 2) for remat in (False, True)
    ]
    assert overrides[4] == {"size": 256, "batch_size": 4}  # as in the config
    assert settings[4].xla_flags() == "--xla_gpu_autotune_level=0"
    assert settings[4].extras == {"cached": False, "attention": "auto"}
    # remat is only another way to do the same work.
    assert settings[0].work == settings[1].work != settings[2].work
    assert settings[0].image_work == settings[2].image_work


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ("batches=2", "batches=2"),
        ("remat=maybe", "true or false"),
        ("batch=two", "batch=two"),
        ("xla=magic", "no_triton_gemm"),
        ("steps", "KEY=VALUE"),
        ("offload_encoders=false,true", "keeps all weights on the devices"),
    ],
)
def test_invalid_rows_are_refused(row, complaint):
    with pytest.raises(ValueError, match=complaint):
        parse_rows("sample", CONFIG, [[row]])


def test_torch_does_each_work_once():
    settings = parse_rows("train", CONFIG, [["batch=2,4", "remat=false,true"], ["cached=false"]])
    rows = torch_rows(settings, ["eager", "compile"])
    assert [(row.setting.overrides["batch_size"], row.variant) for row in rows] == [
        (2, "eager"),
        (2, "compile"),
        (4, "eager"),
        (4, "compile"),
    ]
    check_versus("train", CONFIG, settings)
    with pytest.raises(ValueError, match="photomaker_bg"):
        check_versus("train", CONFIG, parse_rows("train", CONFIG, [["method=photomaker_bg"]]))
    with pytest.raises(ValueError, match="channels_last"):
        read_variant("compile+fast")


def made_row(by, variant, seconds, **found):
    (setting,) = parse_rows("train", CONFIG, [["batch=4"]])
    return Row(by, setting, variant, found, seconds, steps=2)


def test_report(tmp_path):
    found = {"peak_flops": 1e12, "peak_origin": "made up", "device": "a device", "loss": 1.0}
    rows = [
        made_row("ours", "", [2.0, 4.0, 3.0], **found),
        made_row("torch", "eager", [6.0, 6.0, 9.0]),
        made_row("torch", "compile", []),
    ]
    rows[2].error = "out of memory"
    of = rows[0].setting.image_work
    counts = [{"of": of, "ours": 1.5e11, "torch": 1.6e11, "trained": 10, "trained_torch": 10}]
    settings = {"what": "train", "config": "c", "rounds": 3, "threads": 2, "in_turns": True}
    text = write_report(tmp_path / "train", settings, rows, counts)
    del counts[0]["torch"]
    counts[0]["torch_error"] = "ImportError: no peft"
    without = write_report(tmp_path / "without", settings, rows, counts)
    assert "0.15 TFLOP" in without and "torch's not counted (ImportError: no peft)" in without
    result = json.loads((tmp_path / "train.json").read_text())
    ours, eager, lost = result["rows"]
    # The median, 3 s, is for two steps of four images.
    assert ours["images_per_second"] == pytest.approx(4 / 1.5)
    assert ours["floor_s"] == pytest.approx(4 * 1.5e11 / 1e12)
    assert ours["mfu"] == pytest.approx(0.4) and ours["gap"] == pytest.approx(2.5)
    assert eager["mfu"] == pytest.approx(0.2)
    assert "images_per_second" not in lost and lost["error"] == "out of memory"
    (ratio,) = result["ratios"]
    assert ratio["ratio"] == pytest.approx(2.0)
    assert ratio["rounds"] == pytest.approx([3.0, 1.5, 3.0])
    assert text == (tmp_path / "train.md").read_text()
    assert "out of memory" in text and "1.0667 x" in text and "2.00" in text
    assert ratios([lost]) == []


def test_drawn_weights_look_random():
    drawn = np.asarray(fill(np.dtype(np.float32), (300, 200), 7, 0.5, 2.0))
    assert abs(drawn.mean() - 0.5) < 0.05 and abs(drawn.std() - 2.0) < 0.05
    other = np.asarray(fill(np.dtype(np.float32), (300, 200), 8, 0.5, 2.0))
    assert abs(np.corrcoef(drawn.ravel(), other.ravel())[0, 1]) < 0.02
    assert abs(np.corrcoef(drawn[:-1].ravel(), drawn[1:].ravel())[0, 1]) < 0.02


def test_workers_report_errors():
    assert (
        short_message(RuntimeError("RESOURCE_EXHAUSTED: Out of memory while ..."))
        == "out of memory"
    )
    assert short_message(ValueError("first line\nsecond")) == "ValueError: first line"


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("import sys; sys.exit('terminate called: std::bad_alloc')", "out of memory"),
        ("import os; print('last words', file=__import__('sys').stderr); os._exit(7)", "code 7"),
        ("import time; time.sleep(60)", "out of time"),
    ],
)
def test_a_worker_that_dies_becomes_a_row(tmp_path, monkeypatch, program, said):
    """A real parent, and a process that exits like a failed worker."""
    command = tmp_path / "python"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -S -c "{program}"\n')
    command.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(command))
    limit = 3 if said == "out of time" else 60
    worker = bench.Worker({}, tmp_path / "log", time.monotonic() + limit)
    with pytest.raises(bench.RowFailed, match=said):
        worker.answer()
    assert worker.process.returncode is not None


class StandIn(bench.Worker):
    """A worker that reports these devices, has no row and counts nothing."""

    devices = {"platform": "gpu", "devices": 1}
    begun = []

    def __init__(self, task, log, deadline, **environment):
        self.task = task
        self.begun.append((task, environment))

    def answer(self):
        if self.task["by"] == "look":
            return self.devices
        raise bench.RowFailed("out of memory")

    def close(self):
        pass


def run_bench(tmp_path, monkeypatch, *options, **devices):
    """The workers that a bench with stand-ins has started: (task, environment) each."""
    monkeypatch.setattr(StandIn, "devices", {**StandIn.devices, **devices})
    monkeypatch.setattr(StandIn, "begun", [])
    monkeypatch.setattr(bench, "Worker", StandIn)
    bench.main(["train", "--config", CONFIG, "--out", str(tmp_path), *options])
    return StandIn.begun


@pytest.mark.parametrize(
    ("platform", "variants"), [("gpu", bench.ON_ACCELERATOR), ("cpu", bench.ON_CPU)]
)
def test_torch_has_its_platform_s_settings_though_ours_fail(
    tmp_path, monkeypatch, platform, variants
):
    options = ("--versus", "torch", "--threads", "3")
    begun = run_bench(tmp_path, monkeypatch, *options, platform=platform)
    torch = [task["options"]["variant"] for task, _ in begun if task["by"] == "torch"]
    assert torch == list(variants)
    for task, environment in begun:
        if task["by"] in ("ours", "torch"):
            assert environment["NPROC"] == environment["OMP_NUM_THREADS"] == "3"


def test_torch_is_not_compared_with_several_devices(tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match="all 2 devices.*CUDA_VISIBLE_DEVICES=0"):
        run_bench(tmp_path, monkeypatch, "--versus", "torch", devices=2)
    run_bench(tmp_path, monkeypatch, devices=2)  # without torch there is nothing to compare


def test_unknown_variants_are_named(tmp_path, capsys):
    with pytest.raises(SystemExit):
        bench.main(
            ["train", "--config", CONFIG, "--out", str(tmp_path), "--variants", "compile+fast"]
        )
    assert "torch setting 'compile+fast': join some of eager" in capsys.readouterr().err


def test_our_work_is_counted_without_torch(monkeypatch):
    monkeypatch.setattr(bench_train, "step_flops", lambda *_, **__: (10, 2))
    monkeypatch.setitem(sys.modules, "benchmarks.torch_rows", None)
    task = {"what": "train", "config": CONFIG, "overrides": {}, "options": {}, "torch": True}
    counts = count_work(task)
    assert (counts["ours"], counts["trained"]) == (10, 2)
    assert "torch_rows" in counts["torch_error"] and "torch" not in counts


@pytest.mark.slow
@pytest.mark.parametrize(("file", "apart"), [("bench_mid.py", 0.01), ("bench_lora.py", 0.04)])
def test_torch_does_the_same_work(file, apart):
    """Floating-point operations, and exactly the same number of trained parameters.

    With nothing but LoRA trained nobody reads the gradients of the text's states. On a CPU our
    trace has them all the same: LoRA's product has a gradient of its own, and XLA removes the half
    that is not read.
    """
    pytest.importorskip("diffusers")
    pytest.importorskip("peft")
    from benchmarks.torch_rows import torch_step_flops
    from persongen_jax.bench.training import step_flops

    config = read_config(str(Path(CONFIG).with_name(file)), TINY)
    flops, trained = step_flops(config, cached=True)
    torch_flops, torch_trained = torch_step_flops(config)
    assert trained == torch_trained
    assert torch_flops == pytest.approx(flops, rel=apart)
    with_encoders, same = step_flops(config, cached=False)
    assert same == trained and with_encoders > 1.05 * flops


@pytest.mark.slow
def test_the_whole_of_training(tmp_path):
    rows = ["base=tiny", "size=64", "batch=2"]
    arguments = ["train", "--config", CONFIG, "--out", str(tmp_path), "--rounds", "2"]
    arguments += ["--row", *rows, "--row", *rows, "attention=nonsense"]
    bench.main([*arguments, "--versus", "torch", "--variants", "eager,channels_last"])
    result = json.loads((tmp_path / "train.json").read_text())
    ours, failed, *torch = result["rows"]
    assert "attention='nonsense'" in failed["error"]
    for row in (ours, *torch):
        assert len(row["seconds"]) == 2 and 0 < row["images_per_second"] < 1e4
        assert 0.1 < row["loss"] < 100 and row["peak_gib"] > 0.05
        assert row["gap"] > 1 and row["trained"] == result["work"][0]["trained"]
    assert len(result["ratios"]) == 2 and result["in_turns"]


@pytest.mark.slow
def test_the_whole_of_sampling(tmp_path):
    row = ["base=tiny", "size=64", "batch=2", "steps=2", "identity=false,true"]
    arguments = ["sample", "--config", CONFIG, "--out", str(tmp_path), "--rounds", "1"]
    bench.main([*arguments, "--row", *row, "--versus", "torch", "--variants", "eager"])
    plain, person, torch = json.loads((tmp_path / "sample.json").read_text())["rows"]
    assert not person["error"] and person["work"]["identity"]
    assert plain["gap"] > 1 and torch["images_per_second"] > 0
    assert jax.default_backend() == plain["platform"]
