"""What a run logs besides metrics.jsonl: a table, and Weights & Biases."""

import csv
import json
import struct
import sys

import numpy as np
import pytest

from persongen_jax.training.logs.metrics_file import MetricsFile
from persongen_jax.training.logs.weights_and_biases import WandbRun, run_id

SPEEDS = {"images_per_second": 2.5}


def keep(rows, *losses):
    for loss in losses:
        skipped = int(not np.isfinite(loss))
        rows.keep({"loss": loss, "grad_norm": 0.1, "skipped": skipped, "term": 1.0})


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def table(folder):
    with open(folder / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def assert_alike(folder):
    """The table's cells are the lines' numbers, to the last digit."""
    cells = [{k: "" if v is None else repr(v) for k, v in row.items()} for row in lines(folder)]
    assert table(folder) == cells


def test_the_table_has_the_lines_and_loses_the_later_ones_when_a_run_resumes(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with MetricsFile(path, 0, table=True) as rows:
        assert table(tmp_path) == []
        for step, losses in ((2, (1 / 3, 0.25)), (4, (np.nan, np.nan)), (6, (0.1, 0.3))):
            keep(rows, *losses)
            rows.write(step, SPEEDS)
    assert_alike(tmp_path)
    assert [row["step"] for row in table(tmp_path)] == ["2", "4", "6"]
    assert table(tmp_path)[1]["loss"] == ""
    with MetricsFile(path, 4, table=True) as rows:
        assert [row["step"] for row in table(tmp_path)] == ["2", "4"]
        keep(rows, 0.5)
        rows.write(5, SPEEDS)
    assert_alike(tmp_path)


def test_the_table_may_be_turned_on_later_and_get_more_columns(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with MetricsFile(path, 0) as rows:
        keep(rows, 0.5)
        rows.write(1, SPEEDS)
    assert not (tmp_path / "metrics.csv").exists()
    with MetricsFile(path, 1, table=True) as rows:
        assert_alike(tmp_path)
        keep(rows, 0.25)
        rows.write(2, {**SPEEDS, "mfu": 0.5})
    assert [row["mfu"] for row in table(tmp_path)] == ["", "0.5"]
    assert [row["loss"] for row in table(tmp_path)] == ["0.5", "0.25"]


def test_weights_and_biases_missing_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ImportError, match=r"pip install 'persongen_jax\[wandb\]'"):
        WandbRun(tmp_path, "people", {})
    with pytest.raises(ValueError, match="wandb_mode='off' is unknown; give online, offline"):
        WandbRun(tmp_path, "people", {}, "off")
    assert not any(tmp_path.iterdir())


def records(path):
    """What a run's local file holds: blocks of 32 KiB, in which a record may lie in parts."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, place, parts = path.read_bytes(), 7, b""
    while place + 7 <= len(data):
        if 32768 - place % 32768 < 7:  # no room for a header: the block's end is padding
            place += 32768 - place % 32768
        _, size, kind = struct.unpack_from("<IHB", data, place)
        parts += data[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # a whole record, or the last part of one
            yield Record.FromString(parts)
            parts = b""


def history(folder):
    """(run id, rows) of a run's local file."""
    (path,) = folder.glob("run-*.wandb")
    found, ids = [], set()
    for record in records(path):
        if record.WhichOneof("record_type") == "run":
            ids.add(record.run.run_id)
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            names = [i.key or ".".join(i.nested_key) for i in items]
            values = (json.loads(i.value_json) for i in items)
            found.append(dict(zip(names, values, strict=True)))
    (only,) = ids
    return only, found


@pytest.mark.slow
def test_weights_and_biases_offline_goes_on_with_the_same_run(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    picture = np.full((4, 6, 3), 200, np.uint8)
    for step in (3, 6):
        run = WandbRun(tmp_path, "people", {"steps": 6}, mode="offline")
        run.scalars("training", {"step": step, "loss": 0.5 / step, "skipped": 0}, step)
        run.image("validation/in_train", picture, step)
        run.close()
    folders = sorted((tmp_path / "wandb").glob("offline-run-*"))
    assert len(folders) == 2
    for step, folder in zip((3, 6), folders, strict=True):
        name, rows = history(folder)
        assert name == run_id(tmp_path)
        logged = [row for row in rows if "training/loss" in row]
        assert [(row["step"], row["training/loss"]) for row in logged] == [(step, 0.5 / step)]
        (shown,) = (row for row in rows if "validation/in_train.path" in row)
        assert (shown["validation/in_train.width"], shown["validation/in_train.height"]) == (6, 4)
        assert (folder / "files" / shown["validation/in_train.path"]).stat().st_size > 0
