"""A field written outside the package: one class; both loaders put its arrays into batches."""

import numpy as np
import pytest

from data_pipeline.examples.batches import batches, tf_batches
from data_pipeline.examples.fields import Call, Field, FieldError, Image
from data_pipeline.examples.source import ExampleSource
from data_pipeline.records.manifest import read_manifest
from tests.data_pipeline.photographs import (
    assert_same,
    photograph_fields,
    rewrite_manifest,
    take,
    target_of,
)

SIZE = 16
CALL = Call(["a man"], {}, None, np.zeros((1, 6), np.float32), (SIZE, SIZE))


class Attributes(Field):
    """The manifest's data about the person: nested arrays, from two keys."""

    name, keys = "attributes", ("age", "smiles")

    def spec(self, shape):
        return {
            "attributes/age": ((1,), np.dtype(np.float32)),
            "attributes/smiles": ((), np.dtype(bool)),
            "place": ((*shape, 1), np.dtype(np.int32)),
        }

    def make(self, example):
        age = example.record.extra["age"]
        if age > 90:
            return None
        height, width = example.crop.size
        return {
            "attributes/age": np.array([age], np.float32),
            "attributes/smiles": np.array(example.record.extra.get("smiles", False)),
            "place": np.full((height, width, 1), example.crop.left, np.int32),
        }

    def check(self, record, others):
        if "age" not in (record.extra or {}):
            raise FieldError("no age is given")


@pytest.mark.parametrize("make", [batches, tf_batches])
def test_a_user_defined_field(folder, tokenizers, make, caplog):
    ages = [20 + i for i in range(11)] + [99]
    rewrite_manifest(folder, age=ages, smiles=[True] * 4)
    records = read_manifest(folder)
    fields = (*photograph_fields(tokenizers), Attributes())
    source = ExampleSource(records, fields, seed=0, size=SIZE)
    assert "does not read" not in caplog.text
    age_of = dict(zip((r.image for r in records), ages, strict=True))
    shown = set()
    for batch in take(make(source, batch_size=6), 4):
        own = batch["attributes"]
        assert own["age"].shape == (6, 1) and own["age"].dtype == np.float32
        assert own["smiles"].shape == (6,) and own["smiles"].dtype == bool
        assert batch["place"].shape == (6, 16, 16, 1) and batch["place"].dtype == np.int32
        np.testing.assert_array_equal(batch["place"][:, 0, 0, 0], batch["time_ids"][:, 3])
        for row in range(6):
            example = {name: batch[name][row] for name in ("pixel_values", "time_ids")}
            age = age_of[target_of(example, records).image]
            assert own["age"][row] == age and own["smiles"][row] == (age < 24)
            shown.add(age)
    assert shown == set(ages[:11])  # the unusable one was skipped


def test_a_field_of_ones_own_changes_nothing_for_the_others(folder, tokenizers):
    rewrite_manifest(folder, age=[30] * 12)
    records, plain = read_manifest(folder), photograph_fields(tokenizers)
    one = ExampleSource(records, plain, seed=0, size=SIZE)
    other = ExampleSource(records, (*plain, Attributes()), seed=0, size=SIZE)
    for n in range(6):
        example = other.example(n)
        assert list(example) == list(other.specs[0])
        assert_same(one.example(n), {name: example[name] for name in one.specs[0]})


def test_a_field_of_ones_own_refuses_records(folder):
    rewrite_manifest(folder, age=[30] * 11)
    records = read_manifest(folder)
    with pytest.raises(FieldError, match=r"1 records cannot.*\n.*carl_5\.png: no age is given"):
        ExampleSource(records, (Image(), Attributes()), seed=0, size=SIZE)
    assert Attributes().given(CALL) == Attributes().dropped({}, np) == {}
