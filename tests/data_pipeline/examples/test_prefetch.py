"""prefetch_to_device: in order, up to its depth ahead, errors in their place, no thread left."""

import itertools
import threading
import time

import pytest

from data_pipeline.examples.prefetch import prefetch_to_device


def test_prefetch_keeps_order_and_ends():
    assert list(prefetch_to_device(iter(range(20)), lambda x: x * x, depth=3)) == [
        x * x for x in range(20)
    ]


def test_prefetch_runs_ahead_by_depth_only():
    made = []
    ahead = prefetch_to_device(itertools.count(), lambda x: made.append(x) or x, depth=2)
    assert next(ahead) == 0
    deadline = time.time() + 5
    while len(made) < 4 and time.time() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)
    assert made == [0, 1, 2, 3]  # one returned, two waiting, one held by the thread
    ahead.close()


@pytest.mark.parametrize("place", ["iterator", "put"])
def test_prefetch_raises_errors_after_earlier_items(place):
    def items():
        yield 1
        yield 2
        if place == "iterator":
            raise KeyError("boom")
        yield 3

    def put(x):
        if x == 3:
            raise KeyError("boom")
        return x

    ahead = prefetch_to_device(items(), put)
    assert [next(ahead), next(ahead)] == [1, 2]
    with pytest.raises(KeyError, match="boom"):
        next(ahead)


@pytest.mark.parametrize("started", [True, False])
def test_prefetch_closes_cleanly(started):
    before = threading.active_count()
    ahead = prefetch_to_device(itertools.count(), lambda x: x)
    if started:
        next(ahead)
    ahead.close()
    assert threading.active_count() == before
    with pytest.raises(StopIteration):
        next(ahead)
