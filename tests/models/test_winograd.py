"""Convolutions with fewer products are those of XLA, gradients included."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from persongen_jax.models.ops import conv2d
from persongen_jax.models.winograd import conv_by_winograd, use_winograd_on_cpu
from tests.helpers.twins import relative_error


@pytest.mark.parametrize(("height", "width"), [(6, 8), (5, 7), (1, 2)])
def test_as_a_plain_convolution(height, width):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, height, width, 5), np.float32)
    kernel = rng.standard_normal((3, 3, 5, 4), np.float32)

    def loss(conv):
        # Without the 1 the sum nearly cancels, and rounding is a large part of what is left.
        return jax.jit(jax.value_and_grad(lambda *args: (1 + jnp.sin(conv(*args))).sum(), (0, 1)))

    def plain(x, kernel):
        return conv2d(x, kernel, 1, ((1, 1), (1, 1)))

    assert relative_error(conv_by_winograd(x, kernel), plain(x, kernel)) < 1e-6
    ours, theirs = loss(conv_by_winograd)(x, kernel), loss(plain)(x, kernel)
    for found, wanted in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert relative_error(found, wanted) < 1e-5


def test_where_it_is_used():
    shape, kernel = (8, 14, 14, 128), (3, 3, 128, 128)
    assert use_winograd_on_cpu(shape, kernel)
    assert not use_winograd_on_cpu((1, 14, 14, 128), kernel)  # few cells
    assert not use_winograd_on_cpu((8, 14, 14, 64), (3, 3, 64, 128))  # few channels
    assert not use_winograd_on_cpu((32, 28, 28, 128), kernel)  # beyond the cache
    x, weights = (np.random.default_rng(0).standard_normal(s, np.float32) for s in (shape, kernel))
    inferred, trained = (conv2d(x, weights, 1, ((1, 1), (1, 1)), infer=i) for i in (True, False))
    assert 0 < relative_error(inferred, trained) < 1e-6
