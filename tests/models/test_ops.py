"""Functions without weights: platform-specific implementations equal the plain ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, Mesh

from persongen_jax.models import ops
from persongen_jax.models.layers import LayerNorm
from persongen_jax.models.platform import compile_for

PADDING = ((1, 1), (1, 1))


@pytest.fixture(scope="module")
def picture_and_kernel():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 6, 9, 128)).astype(np.float32)
    return x, 0.05 * rng.standard_normal((3, 3, 128, 160)).astype(np.float32)


def convolve(x, kernel):
    return ops.conv2d(x, kernel, 1, PADDING)


def both_gradients(x, kernel):
    return jax.grad(lambda *args: jnp.sin(convolve(*args)).sum(), (0, 1))(x, kernel)


@pytest.mark.parametrize("function", [convolve, both_gradients])
def test_convolution_by_rows(function, picture_and_kernel):
    plain = function(*picture_and_kernel)
    with compile_for("tpu"):
        by_rows = function(*picture_and_kernel)
        text = str(jax.make_jaxpr(convolve)(*picture_and_kernel))
    assert "concatenate" in text  # it is the other form
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), plain, by_rows)


@pytest.mark.parametrize(
    ("x", "kernel", "chosen"),
    [
        ((4, 64, 64, 320), (3, 3, 320, 320), True),
        ((64, 64, 64, 320), (3, 3, 320, 320), False),  # the batch fills the tiles
        ((4, 64, 64, 4), (3, 3, 4, 320), False),
        ((1, 512, 512, 128), (3, 3, 128, 128), False),  # of the VAE
    ],
)
def test_where_convolution_goes_by_rows(x, kernel, chosen):
    assert ops.use_rows_on_tpu(x, kernel) == chosen


@pytest.mark.parametrize("function", [convolve, both_gradients])
def test_convolution_by_taps(function):
    """On a CPU, with fewer pixels than channels."""
    keys = jax.random.split(jax.random.key(0), 2)
    x, kernel = (
        jax.random.normal(k, shape)
        for k, shape in zip(keys, [(2, 3, 4, 24), (3, 3, 24, 32)], strict=True)
    )
    by_taps = function(x, kernel)
    assert "conv_general" not in str(jax.make_jaxpr(convolve)(x, kernel))
    with compile_for("gpu"):
        plain = function(x, kernel)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), plain, by_taps)
    assert "conv_general" in str(jax.make_jaxpr(convolve)(x, kernel[..., :20]))


@pytest.mark.parametrize("shape", [(2, 3, 5, 6), (1, 1, 1, 4)])
def test_convolution_of_an_upsampled_picture(shape):
    """On a CPU by 2x2 kernels, elsewhere by repeating pixels; the kernel's gradient too."""
    keys = jax.random.split(jax.random.key(0), 2)
    x, kernel = jax.random.normal(keys[0], shape), jax.random.normal(keys[1], (3, 3, shape[-1], 7))

    def both(x, kernel):
        y, pull = jax.vjp(ops.conv2d_upsampled, x, kernel)
        return y, *pull(jnp.cos(y))

    ours = both(x, kernel)
    assert ours[0].shape == (shape[0], 2 * shape[1], 2 * shape[2], 7)
    assert "conv_general" not in str(jax.make_jaxpr(both)(x, kernel))
    with compile_for("gpu"):
        theirs = both(x, kernel)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), ours, theirs)


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
@pytest.mark.parametrize(
    ("shape", "padding"), [((3, 3), ((0, 1), (0, 1))), ((5, 5), PADDING)], ids=["uneven", "5x5"]
)
def test_other_convolutions_stay_as_they_are(platform, shape, padding):
    x, kernel = jnp.ones((1, 6, 6, 128)), jnp.ones((*shape, 128, 128))
    with compile_for(platform):
        text = str(jax.make_jaxpr(lambda x, k: ops.conv2d(x, k, 1, padding))(x, kernel))
    assert "conv_general" in text and "concatenate" not in text


def test_materialize_changes_nothing():
    x = jnp.array([[1.0, -2.0], [np.inf, 3.0]])
    materialize = jax.jit(ops.materialize)
    np.testing.assert_array_equal(materialize(x), x)
    gradient = jax.grad(lambda x: (2 * ops.materialize(x)).sum())(x)
    np.testing.assert_array_equal(gradient, np.full((2, 2), 2))
    assert np.isnan(materialize(x.at[0, 0].set(np.nan))).all()
    assert ops.materialize(x) is x  # outside of a program it is in memory
    with compile_for("gpu"):
        assert "cond" not in str(jax.make_jaxpr(lambda x: ops.materialize(x))(x))
    assert "cond" in str(jax.make_jaxpr(lambda x: ops.materialize(x))(x))


@pytest.mark.parametrize(("dtype", "worst"), [(jnp.float32, 5e-4), (jnp.bfloat16, 5e-4)])
def test_layer_norm_far_from_zero(dtype, worst):
    """A mean a thousand times the deviation in float32, thirty times in half precision."""
    norm = LayerNorm(64, dtype=jnp.float32, param_dtype=jnp.float32, rngs=nnx.Rngs(0))
    mean = 1000 if dtype == jnp.float32 else 30
    x = (mean + jax.random.normal(jax.random.key(0), (4, 64))).astype(dtype)
    exact = np.asarray(x, np.float64)
    exact = exact - exact.mean(-1, keepdims=True)
    exact = exact / np.sqrt(np.square(exact).mean(-1, keepdims=True) + 1e-5)
    assert np.abs(norm(x) - exact).max() < worst


def test_geglu_and_its_gradient():
    hidden, gate = jax.random.normal(jax.random.key(0), (2, 64, 8)) * 3

    def plain(hidden, gate):
        return hidden * jax.nn.gelu(gate, approximate=False)

    def gradients(function):
        return jax.grad(lambda *x: jnp.sin(function(*x)).sum(), (0, 1))(hidden, gate)

    np.testing.assert_allclose(ops.geglu(hidden, gate), plain(hidden, gate), atol=3e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5),
        gradients(ops.geglu),
        gradients(plain),
    )


def test_rows_per_device():
    mesh = Mesh(np.array(jax.devices()[:1]), ("data",), axis_types=(AxisType.Auto,))
    assert ops.per_device(8) == 8
    with jax.set_mesh(mesh):
        assert ops.per_device(8) == 8 // mesh.size


def test_gelu_is_the_exact_one():
    x = np.linspace(-9, 9, 2001, dtype=np.float32)
    exact = jax.nn.gelu(x, approximate=False)
    assert np.abs(ops.gelu(x) - exact).max() < 2e-6
