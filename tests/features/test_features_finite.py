"""Images that frozen networks turn into NaN: logged, never stored, and not used in examples."""

import re
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from data_pipeline.records.manifest import write_manifest
from data_pipeline.records.schema import Record
from persongen_jax.systems.open import open_system
from persongen_jax.training.partition import leaf_paths
from tests.features.test_features import rows
from tests.helpers.training_runs import small_base, small_config

BAD = 4  # of six images; all others are grey


@pytest.fixture(scope="module")
def system(tmp_path_factory):
    """Its VAE overflows float32 for a white image, but not for grey ones."""
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    records = []
    for i in range(6):
        path = folder / f"{i}.png"
        low, high = (255, 256) if i == BAD else (127, 129)
        Image.fromarray(rng.integers(low, high, (32, 32, 3), np.uint8, False)).save(path)
        records.append(Record(str(path), "anna", "a woman img"))
    write_manifest(folder, records)
    config = small_config(small_base(tmp_path_factory), folder)
    config.size, config.cache, config.random_crop = 32, str(folder / "cache"), False
    config.cache_kinds = ("moments",)
    system = open_system(config)
    kernel = leaf_paths(system.model)["vae/encoder/conv_in/kernel"]
    before = kernel.get_value()
    kernel.set_value(before / jnp.abs(before).max() * 3e35)
    return system


@pytest.mark.slow
def test_values_that_are_not_finite_are_logged_and_not_stored(system, caplog):
    stream, cache = system.examples(0), Path(system.config.cache)
    source, count = stream.source, "moments not finite, not stored"
    source.features.fill(map(source.feature_jobs, range(6)), batch_size=3)
    assert source.features.counts[count] == 1
    named = rf"{BAD}\.png: the frozen networks' output \(moments\) is not finite.*check"
    assert re.search(named, caplog.text)
    assert rows(cache, "moments") == 5
    for _ in range(3):  # two passes over the data
        assert np.isfinite(next(stream)["moments"]).all()
    assert source.features.counts[count] == 1  # reported once

    # A row stored by an earlier version is not used either.
    again = system.examples(0).source
    image = next(field for field in again.fields if field.name == "image")
    (entry,) = image.all_inputs(again, again.records[0])
    table = again.features._table(image.encoding, entry.shape)
    key = again.features._key(image.encoding, entry)
    good = table.get(key)["moments"]
    table.put(key, {"moments": np.full_like(good, np.nan)})
    assert np.array_equal(again.features.row(image.encoding, entry)["moments"], good)


def test_a_step_names_its_pictures(system):
    stream = system.examples(0)
    names = sum((stream.pictures_of(step) for step in range(1, 7)), [])  # 4 passes over the data
    assert len(names) == 24
    assert all(names.count(record.image) == 4 for record in stream.source.records)
