"""A data set in memory as a source: every row once per epoch, resumed, shared, fingerprinted."""

import json

import ml_dtypes
import numpy as np
import pytest

from data_pipeline.examples.batches import Arrays, batches, tf_batches
from data_pipeline.examples.fields import flatten, unflatten
from tests.data_pipeline.photographs import assert_same, take

ROWS = 10


def arrays(**changes):
    rng = np.random.default_rng(0)
    made = {
        "pixel_values": rng.normal(size=(ROWS, 4, 4, 1)).astype(np.float32),
        "attributes/smiles": rng.random((ROWS, 3)) > 0.5,
        "row": np.arange(ROWS),
    }
    return made | changes


@pytest.fixture
def source():
    return Arrays(arrays(), seed=3)


def rows_of(stream, count):
    return [batch["row"].tolist() for batch in take(stream, count)]


@pytest.mark.parametrize("make", [batches, tf_batches])
def test_batches_are_rows(source, make):
    data = arrays()
    for batch in take(make(source, batch_size=4), 5):
        assert batch.keys() == {"pixel_values", "attributes", "row"}
        for name, array in flatten(batch).items():
            np.testing.assert_array_equal(array, data[name][batch["row"]])
            assert array.dtype == data[name].dtype
            assert (array.shape[1:], array.dtype) == source.specs[0][name]


@pytest.mark.parametrize("make", [batches, tf_batches])
def test_an_epoch_shows_every_row_once_and_epochs_differ(source, make):
    epochs = [sum(rows_of(make(source, batch_size=5, start_step=2 * e), 2), []) for e in range(4)]
    assert all(sorted(epoch) == list(range(ROWS)) for epoch in epochs)
    assert len(set(map(tuple, epochs))) == 4
    other = rows_of(make(Arrays(arrays(), seed=4), batch_size=5), 2)
    assert sum(other, []) != epochs[0]


@pytest.mark.parametrize("make", [batches, tf_batches])
def test_it_resumes_where_it_was_left(source, make):
    stream = make(source, batch_size=4)
    take(stream, 3)
    state = json.loads(json.dumps(stream.state()))
    assert state["step"] == 3 and state["seed"] == 3 and "buckets" not in state
    after = take(stream, 4)
    restored = make(Arrays(arrays(), seed=3), batch_size=4, start_step=state["step"])
    restored.check(state)
    for a, b in zip(after, take(restored, 4), strict=True):
        assert_same(a, b)
    restored.flush()
    assert restored.report() == []


def test_other_data_are_noticed(source):
    state = batches(source, batch_size=4).state()
    pixels = arrays()["pixel_values"].copy()
    pixels[7, 2, 1, 0] += 1
    for changed in (
        arrays(pixel_values=pixels),
        arrays(pixel_values=arrays()["pixel_values"].astype(np.float64)),
        arrays(pixel_values=arrays()["pixel_values"].reshape(ROWS, 16)),
        arrays(more=np.zeros(ROWS)),
        {name.replace("row", "line"): array for name, array in arrays().items()},
    ):
        with pytest.raises(ValueError, match="records was"):
            batches(Arrays(changed, seed=3), batch_size=4).check(state)
    with pytest.raises(ValueError, match="seed was 3 and is 4"):
        batches(Arrays(arrays(), seed=4), batch_size=4).check(state)
    backwards = dict(reversed(arrays().items()))
    strided = arrays(pixel_values=np.asfortranarray(arrays()["pixel_values"]))
    for same in (backwards, strided):
        batches(Arrays(same, seed=3), batch_size=4).check(state)


def test_arrays_of_half_precision():
    data = arrays(pixel_values=arrays()["pixel_values"].astype(ml_dtypes.bfloat16))
    source = Arrays(data, seed=3)
    assert source.fingerprint != Arrays(arrays(), seed=3).fingerprint
    assert next(batches(source, batch_size=2))["pixel_values"].dtype == ml_dtypes.bfloat16


@pytest.mark.parametrize("make", [batches, tf_batches])
def test_two_processes_share_a_batch(source, make):
    whole = take(batches(source, batch_size=4, start_step=1), 4)
    halves = [
        take(make(source, batch_size=4, start_step=1, process_index=i, process_count=2), 4)
        for i in range(2)
    ]
    for batch, *parts in zip(whole, *halves, strict=True):
        flat = [flatten(part) for part in parts]
        joined = {name: np.concatenate([part[name] for part in flat]) for name in flat[0]}
        assert_same(batch, unflatten(joined))
        assert parts[0]["row"].tolist() != parts[1]["row"].tolist()


def test_workers_make_the_same_batches(source):
    assert rows_of(batches(source, batch_size=4, workers=3), 6) == rows_of(
        batches(Arrays(arrays(), seed=3), batch_size=4), 6
    )


@pytest.mark.parametrize(
    "data", [{}, {"a": np.zeros((0, 3))}, {"a": np.zeros(3), "b": np.zeros((4, 2))}]
)
def test_arrays_need_the_same_number_of_rows(data):
    with pytest.raises(ValueError, match="all need the same number, above 0"):
        Arrays(data, seed=0)
