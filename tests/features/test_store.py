import logging
import os
import resource

import ml_dtypes
import numpy as np
import pytest

from persongen_jax.features.store import FeatureTable, digest_of

SPEC = {"states": ((3, 2), ml_dtypes.bfloat16), "pooled": ((4,), np.float32)}
KEYS = [digest_of("row", i) for i in range(6)]


def row(i):
    return {
        "states": np.full((3, 2), i + 0.5, ml_dtypes.bfloat16),
        "pooled": np.arange(4, dtype=np.float32) * i,
    }


def same(found, i):
    wanted = row(i)
    return found is not None and all(
        found[n].dtype == wanted[n].dtype and np.array_equal(found[n], wanted[n]) for n in wanted
    )


def written(folder, rows=range(6), **options):
    table = FeatureTable(folder, SPEC, **options)
    for i in rows:
        table.put(KEYS[i], row(i))
    table.flush()
    return table


def files(folder):
    return sorted(folder.glob("*.safetensors"))


def test_rows_come_back_from_memory_and_from_disk(tmp_path):
    table = FeatureTable(tmp_path, SPEC)
    table.put(KEYS[0], row(0))
    assert same(table.get(KEYS[0]), 0) and not files(tmp_path)  # it waits for more rows
    table.flush()
    assert same(table.get(KEYS[0]), 0) and len(files(tmp_path)) == 1
    again = FeatureTable(tmp_path, SPEC)
    assert len(again) == 1 and KEYS[0] in again and same(again.get(KEYS[0]), 0)
    assert KEYS[1] not in again and again.get(KEYS[1]) is None
    again.flush()
    assert len(files(tmp_path)) == 1  # nothing new, no file


def test_few_files_and_several_writers(tmp_path):
    """Rows are written in parts of a size; two tables on one folder see each other's."""
    one = written(tmp_path, range(4), part_bytes=2 * one_row_bytes())
    assert len(files(tmp_path)) == 2
    other = FeatureTable(tmp_path, SPEC)
    other.put(KEYS[4], row(4))
    other.flush()
    assert KEYS[4] not in one
    one.refresh()
    assert all(same(one.get(KEYS[i]), i) for i in range(5)) and len(one) == 5


def one_row_bytes():
    return 3 * 2 * 2 + 4 * 4


def test_a_flipped_byte_costs_its_row_and_no_other(tmp_path, caplog):
    written(tmp_path)
    (path,) = files(tmp_path)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1  # in the last row
    path.write_bytes(content)
    table = FeatureTable(tmp_path, SPEC)
    assert all(same(table.get(KEYS[i]), i) for i in range(5))
    with caplog.at_level(logging.WARNING):
        assert table.get(KEYS[5]) is None and KEYS[5] not in table
    assert str(path) in caplog.text and "row 5" in caplog.text
    table.put(KEYS[5], row(5))
    table.flush()
    assert same(FeatureTable(tmp_path, SPEC).get(KEYS[5]), 5)  # the newer one counts


@pytest.mark.parametrize("damage", ["cut", "index", "empty"])
def test_a_damaged_file_is_named_and_left_out(tmp_path, caplog, damage):
    written(tmp_path, range(3))
    broken = files(tmp_path)[0]
    written(tmp_path, range(3, 6))
    content = bytearray(broken.read_bytes())
    if damage == "cut":
        content = content[:-7]
    elif damage == "index":
        place = content.index(KEYS[1])
        content[place] ^= 1
    else:
        content = b""
    broken.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        table = FeatureTable(tmp_path, SPEC)
    assert str(broken) in caplog.text
    assert len(table) == 3 and all(same(table.get(KEYS[i]), i) for i in range(3, 6))


def test_an_interrupted_write_leaves_nothing(tmp_path, monkeypatch):
    """A full disk: no partial file is left, and the rows still wait in memory."""
    table = written(tmp_path, range(2))

    def full(*_):
        raise OSError(28, "No space left on device")

    table.put(KEYS[2], row(2))
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            table.flush()
    assert [path.suffix for path in tmp_path.iterdir()] == [".safetensors"]
    assert same(table.get(KEYS[2]), 2)
    table.flush()
    assert len(FeatureTable(tmp_path, SPEC)) == 3


def test_more_files_than_a_process_may_open(tmp_path):
    written(tmp_path, part_bytes=1)
    assert len(files(tmp_path)) == 6
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = [os.open(os.devnull, os.O_RDONLY) for _ in range(3)]  # which need not lie side by side
    for descriptor in free:
        os.close(descriptor)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(free) + 1, limits[1]))
    try:
        table = FeatureTable(tmp_path, SPEC)
        assert all(same(table.get(KEYS[i]), i) for i in range(6))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_a_file_that_somebody_removed_costs_its_rows(tmp_path):
    table = written(tmp_path)
    files(tmp_path)[0].unlink()
    assert table.get(KEYS[0]) is None and KEYS[0] not in table


def test_rows_that_wait_can_be_forgotten(tmp_path):
    table = written(tmp_path, range(2))
    table.put(KEYS[2], row(2))
    table.discard()
    assert len(table) == 2 and table.get(KEYS[2]) is None


def test_other_rows_are_refused(tmp_path):
    written(tmp_path)
    with pytest.raises(ValueError, match="belongs elsewhere"):
        FeatureTable(tmp_path, {"states": ((3, 2), np.float32)})
    table = FeatureTable(tmp_path, SPEC)
    with pytest.raises(ValueError, match="pooled"):
        table.put(KEYS[0], {**row(0), "pooled": np.zeros(4)})  # float64
    with pytest.raises(ValueError, match="needed"):
        table.put(KEYS[0], {"states": row(0)["states"]})


def test_keys_tell_apart_what_differs():
    parts = [
        ("a", "b"),
        ("ab",),
        ("a", b"b"),
        ("a", 1),
        ("a", 1.0),
        ("a", None),
        ("a", (1, 2)),
        ("a", np.zeros(4, np.float32)),
        ("a", np.zeros((2, 2), np.float32)),
        ("a", np.zeros(4, np.int32)),
        ("a", np.zeros(8, ml_dtypes.bfloat16)),
        ("a", np.zeros(8, np.int16)),
    ]
    keys = [digest_of(*these) for these in parts]
    assert len(set(keys)) == len(parts) and keys == [digest_of(*these) for these in parts]
