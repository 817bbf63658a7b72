"""Worker processes that die or hang cost their item; order and errors are kept."""

import pytest

from data_pipeline.collect.running import local
from tests.data_pipeline.collect.crashing import CannotStart, double, failed


def test_a_crash_costs_its_item_and_the_order_stays():
    found = local.run(double, [1, 2, 13, 4, 5], failed, workers=2, size=2, timeout=20)
    assert list(found) == [2, 4, "13: the process that decoded it died (SIGSEGV)", 8, 10]


def test_an_item_that_hangs_is_ended():
    found = local.run(double, [1, 99, 3], failed, workers=1, size=1, timeout=0.5)
    assert list(found) == [2, "99: not decoded within 0.5 s", 6]


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_costs_its_item_and_is_told(workers, capsys):
    found = local.run(double, [1, -1, 2], failed, workers=workers, size=3, timeout=20)
    assert list(found) == [2, "-1: an error: ValueError: -1 is negative", 4]
    assert "-1: an error: ValueError" in capsys.readouterr().err


@pytest.mark.parametrize("workers", [0, 1])
def test_a_fault_of_the_disk_is_the_callers(workers):
    with pytest.raises(OSError, match="no space"):
        list(local.run(double, [1, 28], failed, workers=workers, size=2, timeout=20))


def test_processes_that_cannot_start_are_not_taken_for_bad_pictures():
    with pytest.raises(OSError, match="cannot start"):
        list(local.run(CannotStart(), [1, 2], failed, workers=1, size=1, timeout=20))


def test_without_processes():
    assert list(local.run(double, [1, 2, 3], failed, workers=0, size=2, timeout=1)) == [2, 4, 6]
    assert list(local.run(double, [], failed, workers=2, size=2, timeout=1)) == []
