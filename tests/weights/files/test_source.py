"""Sources that wrap other sources."""

import numpy as np
import pytest

from persongen_jax.weights.errors import KeyMismatch, WeightsError
from persongen_jax.weights.files.source import (
    POINTWISE,
    TRANSPOSE,
    DictSource,
    RenamedSource,
    Renaming,
    subsource,
    third,
)


def test_transforms_keep_what_info_promises():
    array = np.arange(24.0).reshape(6, 4)
    pointwise = np.arange(6.0).reshape(2, 3, 1, 1)
    base = DictSource({"a": array, "p": pointwise})
    table = {"t": ("a", TRANSPOSE), "q": ("a", third(0)), "v": ("a", third(2)), "x": ("a", None)}
    source = RenamedSource(base, {**table, "l": ("p", POINTWISE)})
    wanted = {"t": array.T, "q": array[:2], "v": array[4:], "x": array, "l": pointwise[:, :, 0, 0]}
    assert set(source.keys()) == set(wanted)
    for key, value in wanted.items():
        assert source.info(key) == (value.dtype, value.shape)
        np.testing.assert_array_equal(source.read(key), value)
    # A view would keep the whole fused tensor in memory.
    assert source.read("v").base is None


def test_collisions_and_unknown_names():
    base = DictSource({"a": np.zeros(1), "b": np.zeros(1)}, "file.bin")
    renaming = Renaming(base)
    renaming.add("x", "a")
    with pytest.raises(WeightsError, match="file.bin: 'a' and 'b' both mean 'x'"):
        renaming.add("x", "b")
    with pytest.raises(KeyMismatch, match="file.bin"):
        renaming.source().read("a")


def test_subsource_takes_a_prefix_off_and_leaves_the_base_open():
    base = DictSource({"id_encoder.a": np.ones(2), "lora_weights.b": np.zeros(1)}, "p.bin")
    with subsource(base, "id_encoder.") as part:
        assert part.keys() == ["a"] and part.describe() == "p.bin (id_encoder)"
        np.testing.assert_array_equal(part.read("a"), [1, 1])
    assert base.keys() == ["id_encoder.a", "lora_weights.b"]
    with pytest.raises(KeyMismatch, match="nothing"):
        subsource(base, "nothing.")
