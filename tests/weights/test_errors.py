"""KeyMismatch lists everything there is to know, but no more than fits on a screen."""

from persongen_jax.weights.errors import SHOWN, KeyMismatch


def test_all_three_lists_with_shapes():
    error = KeyMismatch(
        "unet.safetensors",
        missing={"a.weight": (3, 4)},
        unexpected={"b.weight": (5,)},
        misshapen={"c.weight": ((1, 2), (2, 1))},
    )
    text = str(error)
    assert text.startswith("unet.safetensors: ")
    assert "a.weight (3, 4)" in text and "b.weight (5,)" in text
    assert "c.weight: file (1, 2), model (2, 1)" in text
    assert list(error.missing) == ["a.weight"] and list(error.unexpected) == ["b.weight"]
    assert error.misshapen == {"c.weight": ((1, 2), (2, 1))}


def test_long_lists_are_capped_and_counted():
    error = KeyMismatch("f", missing=[f"k{i:04}" for i in range(SHOWN + 137)])
    text = str(error)
    assert text.count("\n") == SHOWN + 2
    assert "and 137 more" in text and f"({SHOWN + 137})" in text
    assert len(error.missing) == SHOWN + 137
