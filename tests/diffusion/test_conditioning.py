"""Regions as arrays at the size of a feature map; names of maps."""

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from persongen_jax.diffusion.conditioning import (
    Conditioning,
    TokenStream,
    region_arrays,
    to_region,
)


def test_masks_of_any_kind_and_size():
    left = np.zeros((40, 60), bool)
    left[:, :30] = True
    wanted = np.tile(np.array([1, 1, 0, 0], np.float32), (2, 1))
    for mask in (left, left.astype(float), Image.fromarray(left), wanted):
        assert np.array_equal(to_region(mask, 2, 4), wanted)
    assert to_region(left, 1, 1).item() == 0.5
    found = region_arrays([[left, ~left], [left]], [[0, 0], [0]], 2, 4)
    assert found.shape == (2, 2, 2, 4) and not found[1, 1].any()
    assert np.array_equal(found[0, 0] + found[0, 1], np.ones((2, 4)))
    for bad, named in (
        (np.ones((2, 2), np.uint8), "give 0 and 255"),
        (np.full((2, 2), 3.0), "3 to 3"),
    ):
        with pytest.raises(ValueError, match=named):
            to_region(bad, 2, 2)
    with pytest.raises(ValueError, match=r"\(2, 2, 2\)"):
        to_region(np.ones((2, 2, 2)), 2, 2)


def test_a_map_cannot_be_called_like_a_stream():
    tokens = TokenStream(jnp.zeros((1, 2, 3)))
    given = Conditioning({"text": tokens, "face": tokens}, jnp.zeros((1, 3)), jnp.zeros((1, 6)))
    for name in ("face", "identity"):
        with pytest.raises(ValueError, match=f"config.control='{name}'"):
            given.with_map(name, jnp.zeros((1, 8, 8, 3)))
