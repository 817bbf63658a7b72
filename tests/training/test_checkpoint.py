"""Checkpoints on their own: digests, damage, fallback, deletion, which configs may resume."""

import errno
import json
import logging
import os
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.base import get_config
from persongen_jax.parallel.sharding import make_mesh, replicated
from persongen_jax.settings import check_resumable, config_differences
from persongen_jax.systems.open import complete_config
from persongen_jax.training import integrity
from persongen_jax.training.bad_steps import BadSteps, NonFinite
from persongen_jax.training.checkpoint import Checkpoints, CorruptCheckpoint, find_run
from persongen_jax.training.trained import load_trained, trained_shapes


def arrays(step):
    """Random, so that they fill files: the larger one has 256 KB."""
    rng = np.random.default_rng(step)
    sizes = {"unet/a": (256, 256), "unet/b": (3,)}
    return {
        name: jnp.asarray(rng.standard_normal(size, np.float32)) for name, size in sizes.items()
    }


def save(checkpoints, step):
    trainable = arrays(step)
    opt_state = {"mu": arrays(step + 100), "count": jnp.asarray(step)}
    checkpoints.save(step, trainable, opt_state, {"step": step}, ema=arrays(step + 200))


@pytest.fixture
def workdir(tmp_path):
    """With checkpoints of steps 1, 2 and 3."""
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.newest() is None
        for step in (1, 2, 3):
            save(checkpoints, step)
    return tmp_path


def largest_file(folder):
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut_in_half(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGES = {
    "flipped": (flip_a_bit, "SHA-256 .* expected"),
    "cut": (cut_in_half, r"\d+ bytes, expected \d+"),
    "gone": (lambda path: path.unlink(), r"missing, expected \d+ bytes"),
}


def loaded(workdir):
    values, config = load_trained(workdir, replicated(make_mesh()))
    return jax.tree.map(np.asarray, values), config


def same(a, b):
    return jax.tree.all(jax.tree.map(np.array_equal, a, b))


# ---- Digests -----------------------------------------------------------------------------------


def test_every_file_has_a_digest(workdir):
    folder = workdir / "checkpoints" / "3"
    there = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    entries = json.loads((folder / integrity.NAME).read_text())["files"]
    assert entries.keys() == there - {integrity.NAME}
    assert {name.split("/")[0] for name in entries} >= {"trainable", "opt_state", "ema", "config"}
    assert integrity.find_faults(folder) == []


def test_digests_that_are_damaged_are_a_fault(workdir):
    folder = workdir / "checkpoints" / "3"
    for text in ("", "{", "[]", '{"files": [1]}', '{"files": {"a": {"bytes": 1}}}'):
        (folder / integrity.NAME).write_text(text)
        assert "unreadable" in integrity.find_faults(folder)[0]
    (folder / integrity.NAME).unlink()
    with pytest.raises(FileNotFoundError):
        integrity.find_faults(folder)


def test_unreadable_files_are_a_fault(workdir, monkeypatch):
    measure = integrity._measure

    def broken(path):
        if path.name == "metadata":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return measure(path)

    monkeypatch.setattr(integrity, "_measure", broken)
    faults = integrity.find_faults(workdir / "checkpoints" / "3")
    assert faults and all(
        fault.endswith("metadata: cannot be read (Input/output error)") for fault in faults
    )


# ---- Damage ------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_newest_one_is_named_and_the_one_before_used(damage, workdir, caplog):
    change, named = DAMAGES[damage]
    path = largest_file(workdir / "checkpoints" / "3")
    change(path)
    before = path.read_bytes() if path.exists() else None

    # A reader uses the one before, and changes nothing.
    values, config = loaded(workdir)
    assert same(values, arrays(202)) and config == {"step": 2}  # the running average
    assert path.name in caplog.text
    assert (workdir / "checkpoints" / "3").is_dir()

    # A trainer moves it aside.
    caplog.clear()
    with Checkpoints(workdir) as checkpoints:
        assert checkpoints.newest() == 2
        assert f"checkpoints/3 is damaged: {path.relative_to(workdir / 'checkpoints/3')}" in (
            caplog.text
        )
        assert any(record.levelno == logging.WARNING for record in caplog.records)
        assert re.search(named, caplog.text)
        aside = workdir / "checkpoints" / "3.corrupt" / path.relative_to(workdir / "checkpoints/3")
        assert (aside.read_bytes() if aside.exists() else None) == before
        save(checkpoints, 3)  # the name is free again
        assert checkpoints.has(3)
    assert find_run(workdir)[1] == 3


def test_none_intact_is_an_error_and_no_new_beginning(workdir):
    for step in (1, 2, 3):
        flip_a_bit(largest_file(workdir / "checkpoints" / str(step)))
    with pytest.raises(CorruptCheckpoint, match="no checkpoint there is intact"):
        find_run(workdir)
    with pytest.raises(CorruptCheckpoint, match="step 2 is not intact"):
        find_run(workdir, 2)
    for _ in range(2):  # the second time all have been moved aside
        with pytest.raises(CorruptCheckpoint, match="another --workdir"):
            Checkpoints(workdir).newest()
    assert len(list((workdir / "checkpoints").glob("*.corrupt"))) == 3


def test_a_checkpoint_without_digests_is_used_with_a_warning(workdir, caplog):
    (workdir / "checkpoints" / "3" / integrity.NAME).unlink()
    assert find_run(workdir)[1] == 3
    assert "used unverified" in caplog.text


def test_a_step_that_is_not_there(workdir):
    assert find_run(workdir, 2) == (workdir, 2)
    with pytest.raises(FileNotFoundError, match="no checkpoint of step 7; there are 1, 2, 3"):
        find_run(workdir, 7)


# ---- What is saved, and for how long -----------------------------------------------------------


def test_checkpoints_restore_onto_shapes(workdir):
    sharding = replicated(make_mesh())

    def shapes(tree):
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree
        )

    checkpoints = Checkpoints(workdir)
    assert checkpoints.newest() == 3 and checkpoints.has(3) and not checkpoints.has(2)
    opt_state = {"mu": arrays(0), "count": jnp.asarray(0)}
    *parts, stats, progress = checkpoints.restore(
        3, shapes(arrays(0)), shapes(opt_state), arrays(0), {}
    )
    expected = [arrays(3), {"mu": arrays(103), "count": 3}, arrays(203)]
    assert same(parts, expected) and stats == progress == {}
    assert checkpoints.config(3) == {"step": 3}
    assert trained_shapes(workdir)["unet/a"] == (np.dtype(np.float32), (256, 256))


def test_statistics_lie_beside_what_is_trained(tmp_path):
    trained, gathered = {"net/a": jnp.arange(3.0)}, {"net/mean": jnp.full(4, 0.5)}
    opt_state = {"count": jnp.asarray(7)}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, trained, opt_state, {}, stats=gathered)
        assert checkpoints.has(1)
        zeros = [jax.tree.map(jnp.zeros_like, tree) for tree in (trained, opt_state, gathered)]
        found = checkpoints.restore(1, *zeros[:2], {}, zeros[2])
    assert same(found[:4], (trained, opt_state, {}, gathered))
    assert same(loaded(tmp_path)[0], {**trained, **gathered})


def test_old_ones_go_when_the_new_one_is_complete(workdir):
    folder = workdir / "checkpoints"
    with Checkpoints(workdir, keep=2) as checkpoints:
        checkpoints.newest()
        save(checkpoints, 4)
        assert checkpoints.has(4)
        assert sorted(p.name for p in folder.iterdir()) == ["3", "4"]
    with Checkpoints(workdir, keep=0) as checkpoints:
        for step in (5, 6):
            save(checkpoints, step)
    assert sorted(p.name for p in folder.iterdir()) == ["3", "4", "5", "6"]


# ---- Which configs may resume -------------------------------------------------------------------


def changed(**keys):
    config = get_config()
    config.update(keys)
    return json.loads(config.to_json())


def test_free_keys_and_moved_files_are_the_same_run():
    before = changed(
        **{"base": "/old/sdxl", "data": "photos", "validate_in_train": "photos"},
        **{"face_encoder": "/old/w600k.onnx", "loss_pose_net": "movenet:/old/thunder.json"},
    )
    now = changed(
        **{"base": "/new/sdxl", "data": "/mnt/photos", "steps": 7, "log_every": 3},
        **{"checkpoint_every": 2, "keep_checkpoints": 1, "validation_every": 5, "fsdp": 4},
        **{"validate_in_train": "", "tensorboard": True, "remat": True, "max_bad_steps": 2},
        # Networks that a method, a loss and a judge read.
        **{"face_encoder": "/new/w600k.onnx", "loss_pose_net": "movenet:/new/thunder.json"},
        **{"pose_net": "movenet:/new/lightning.json"},
    )
    check_resumable("runs/x", before, now)
    # A comparison of finished runs needs the same number of steps.
    assert [line.split(":")[0] for line in config_differences(before, now)] == [
        *("pose_net", "steps", "validate_in_train", "validation_every"),
    ]


def test_other_settings_are_refused_with_the_differences():
    saved = changed(clip_norm=0.5)
    del saved["noise_offset"]  # saved before there was this key
    before = json.loads(complete_config(saved).to_json())
    check_resumable("runs/x", before, changed(clip_norm=0.5))
    with pytest.raises(ValueError) as refused:
        check_resumable("runs/x", before, changed(lr_lora=0.5, method="photomaker_bg"))
    said = str(refused.value)
    assert "clip_norm: 0.5 -> 0.0; lr_lora: 1e-05 -> 0.5; method: 'photomaker' -> " in said
    assert "--config.start_from=runs/x" in said and "steps" not in said


# ---- Steps that are not finite -----------------------------------------------------------------


def test_bad_steps_in_a_row_end_the_run(caplog):
    bad = BadSteps(3, workdir="runs/x")
    for step, skipped in enumerate([0, 1, 1, 0, 1, 1], 1):
        bad.keep(step, jnp.asarray(skipped))
        bad.check()
    assert bad.in_a_row == [5, 6]
    # A resumed run continues counting.
    again = BadSteps(3, bad.in_a_row, "runs/x")
    again.keep(7, jnp.asarray(1))
    with pytest.raises(NonFinite, match=r"steps 5 to 7, 3 in a row .*start_from=runs/x"):
        again.check()
    # The image that was in all of them is named first.
    named = BadSteps(2, pictures_of=lambda step: [f"{step}.png", "bad.png", f"{step + 10}.png"])
    with pytest.raises(NonFinite, match=r"these steps \(bad\.png, 1\.png, 11\.png, 2\.png"):
        for step in (1, 2):
            named.keep(step, jnp.asarray(1))
            named.check()
    assert "step 1: the loss or the gradient is not finite; its update is skipped (1.png, bad" in (
        caplog.text
    )
    never = BadSteps(0)
    for step in range(50):
        never.keep(step, jnp.asarray(1))
    never.check()
    assert len(never.in_a_row) == 50
