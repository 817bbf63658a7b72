"""The machinery of the tests: bounded kept programs, stored outputs, files made once, budgets."""

import os
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest

from tests.helpers import budgets, compiled, goldens
from tests.helpers.made_once import made_once


def test_kept_programs_are_bounded_and_whole(tmp_path):
    from jax._src.compilation_cache import compress_executable

    for i in range(4):
        path = tmp_path / f"program{i}-cache"
        path.write_bytes(compress_executable(np.random.default_rng(i).bytes(1000)))
        os.utime(path, (i, i))
    half = tmp_path / "half-cache"
    half.write_bytes((tmp_path / "program3-cache").read_bytes()[:500])
    os.utime(half, (9, 9))
    assert compiled.remove_broken(tmp_path, since=10) == 0  # of an earlier run
    assert compiled.remove_broken(tmp_path, since=8) == 1 and not half.exists()
    assert compiled.remove_oldest(tmp_path, limit=2500) == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["program2-cache", "program3-cache"]


def test_another_processor_has_a_folder_of_its_own(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    here = compiled.folder()
    assert tmp_path in here.parents
    monkeypatch.setattr(compiled, "_processor", lambda: "another")
    assert compiled.folder() != here


def test_stored_outputs_are_what_the_twin_gives(monkeypatch, tmp_path):
    monkeypatch.setattr(goldens, "FOLDER", tmp_path)
    node = SimpleNamespace(nodeid="tests/models/test_x.py::test_y[a/b]")
    first, second = np.arange(3.0), {"x": np.ones((2, 2)), "y": np.zeros(0)}

    def read(mode, *computes):
        golden = goldens.Golden(node, mode)
        return [golden(compute) for compute in computes]

    with pytest.raises(AssertionError, match="nothing is stored.*tests.goldens.record"):
        read("stored", lambda: first)
    read("record", lambda: first, lambda: second)
    found = read("stored", None, None)  # nothing is computed
    assert np.array_equal(found[0], first) and found[1].keys() == second.keys()
    read("live", lambda: first + 1e-4, lambda: second)
    with pytest.raises(AssertionError, match="tests.goldens.record"):
        read("live", lambda: first + 1e-1)


def test_all_stored_outputs_are_small():
    assert sum(path.stat().st_size for path in goldens.FOLDER.glob("*.npz")) < 5_000_000
    assert sum(path.stat().st_size for path in goldens.FOLDER.rglob("*.npz")) < 15_000_000


def test_files_are_made_once_and_again_if_that_failed(tmp_path, monkeypatch):
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    factory, made = SimpleNamespace(getbasetemp=lambda: tmp_path), []

    def make(folder, fail=False):
        made.append(sorted(p.name for p in folder.iterdir()))
        (folder / "a").touch()
        if fail:
            raise OSError("no space")

    with pytest.raises(OSError, match="no space"):
        made_once(factory, "x", lambda folder: make(folder, fail=True))
    for _ in range(2):
        assert (made_once(factory, "x", make) / "a").exists()
    assert made == [[], []]


def test_a_folder_over_its_budget_is_marked():
    report = SimpleNamespace(nodeid="tests/models/faces/test_x.py::test_y", duration=30.0)
    seconds = budgets.seconds_by_folder([report, report])
    assert seconds == Counter({"tests/models": 60.0})
    assert "over" not in budgets.table(seconds, {"tests/models": (50, 50)}, slow=False)[0]
    assert "over its budget" in budgets.table(seconds, {"tests/models": (40, 50)}, slow=False)[0]
