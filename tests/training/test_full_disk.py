"""Saving and logging on a full disk, and a kill during a save."""

import io
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from persongen_jax.training.checkpoint import Checkpoints, SaveFailed, find_run, is_intact
from persongen_jax.training.logs.retrying_file import RetryingFile
from persongen_jax.training.logs.tensorboard import EventFile
from tests.training.disks import Words, fill, make_room, small_disk

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
