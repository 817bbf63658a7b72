"""The one attention function: its implementations agree, and the right one is chosen."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from persongen_jax.diffusion.conditioning import TokenStream
from persongen_jax.models import attention_kernels as module
from persongen_jax.models.attention import Transformer2DModel
from persongen_jax.models.attention_kernels import attention, even_keys, pick_kernel
from persongen_jax.models.platform import attention_by, compile_for, target_platform


def reference(q, k, v, mask=None, is_causal=False):
    """softmax(q k^T / sqrt(d)) v in float64 numpy."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    scores = np.einsum("bnhd,bmhd->bhnm", q, k) / np.sqrt(q.shape[-1])
    if is_causal:
        scores = np.where(np.tril(np.ones(scores.shape[-2:], bool)), scores, -np.inf)
    if mask is not None:
        scores = np.where(mask, scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("bhnm,bmhd->bnhd", weights / weights.sum(-1, keepdims=True), v)


@pytest.fixture
def qkv():
    rng = np.random.default_rng(0)
    return [rng.standard_normal((2, n, 3, 8)).astype(np.float32) for n in (37, 21, 21)]


@pytest.mark.parametrize("limit", [2**30, 4096, 1], ids=["whole", "chunks", "one query each"])
@pytest.mark.parametrize("masked", ["none", "keys", "full"])
def test_equals_the_formula(limit, masked, qkv, monkeypatch):
    monkeypatch.setattr(module, "MAX_SCORE_BYTES", limit)
    rng = np.random.default_rng(1)
    mask = {
        "none": None,
        "keys": rng.random((2, 1, 1, 21)) > 0.5,
        "full": rng.random((2, 3, 37, 21)) > 0.3,
    }[masked]
    for platform in ("cpu", "tpu"):
        with compile_for(platform):
            found = jax.jit(lambda *args: attention(*args))(*qkv, mask)
        assert np.abs(found - reference(*qkv, mask)).max() < 1e-5


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("limit", [2**30, 4096], ids=["whole", "chunks"])
@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_gradient_is_that_of_the_formula(platform, limit, masked, qkv, monkeypatch):
    monkeypatch.setattr(module, "MAX_SCORE_BYTES", limit)
    mask = np.random.default_rng(1).random((2, 1, 1, 21)) > 0.5 if masked else None

    def formula(q, k, v):
        scores = jnp.einsum("bnhd,bmhd->bhnm", q, k) / np.sqrt(q.shape[-1])
        if masked:
            scores = jnp.where(mask, scores, -1e30)
        return jnp.einsum("bhnm,bmhd->bnhd", jax.nn.softmax(scores), v)

    def gradients(attend):
        return jax.grad(lambda *qkv: jnp.sin(attend(*qkv)).sum(), (0, 1, 2))(*qkv)

    with compile_for(platform):
        found = gradients(lambda *qkv: attention(*qkv, mask))
    for ours, theirs in zip(found, gradients(formula), strict=True):
        assert np.abs(ours - theirs).max() < 1e-5


def test_even_keys_change_nothing(qkv):
    """cuDNN's backward pass with a mask refuses an odd number of keys: 77 tokens are odd."""
    q, k, v = qkv
    mask = np.random.default_rng(1).random((2, 3, 37, 21)) < 0.5
    mask[..., 0] = True
    even = even_keys(k, v, mask)
    assert [x.shape for x in even] == [(2, 22, 3, 8), (2, 22, 3, 8), (2, 3, 37, 22)]
    assert np.abs(attention(q, *even) - reference(q, k, v, mask)).max() < 1e-5


@pytest.mark.parametrize("limit", [2**30, 4096])
def test_causal(limit, qkv, monkeypatch):
    monkeypatch.setattr(module, "MAX_SCORE_BYTES", limit)
    q, _, _ = qkv
    found = attention(q, q, q, is_causal=True)
    assert np.abs(found - reference(q, q, q, is_causal=True)).max() < 1e-5


def test_chunks_bound_the_memory():
    """The VAE's attention at 1024 x 1024: 16384 positions, one head, 1 GiB of scores if whole."""
    shape = jax.ShapeDtypeStruct((1, 16384, 1, 512), jnp.float32)
    used = jax.jit(attention).lower(shape, shape, shape).compile().memory_analysis()
    assert used.temp_size_in_bytes < 600 * 2**20


@pytest.mark.parametrize(
    ("platform", "q", "k", "dtype", "masked", "kernel"),
    [
        ("gpu", (2, 1024, 10, 64), (2, 77, 10, 64), jnp.bfloat16, False, "cudnn"),
        ("gpu", (2, 1024, 10, 64), (2, 77, 10, 64), jnp.bfloat16, True, "cudnn"),
        ("gpu", (2, 577, 16, 64), (2, 577, 16, 64), jnp.bfloat16, False, "cudnn"),
        ("gpu", (2, 577, 16, 64), (2, 577, 16, 64), jnp.bfloat16, True, "xla"),
        ("gpu", (2, 1024, 10, 64), (2, 77, 10, 64), jnp.float32, False, "xla"),
        ("gpu", (1, 16384, 1, 512), (1, 16384, 1, 512), jnp.bfloat16, False, "xla_chunked"),
        ("tpu", (2, 4096, 10, 64), (2, 4096, 10, 64), jnp.bfloat16, False, "tpu_flash"),
        ("tpu", (2, 4096, 10, 64), (2, 77, 10, 64), jnp.bfloat16, False, "xla"),
        ("tpu", (2, 1024, 20, 64), (2, 1024, 20, 64), jnp.bfloat16, False, "xla"),
        ("tpu", (2, 256, 20, 64), (2, 256, 20, 64), jnp.bfloat16, False, "xla"),
        ("cpu", (2, 1024, 10, 64), (2, 1024, 10, 64), jnp.bfloat16, False, "xla"),
    ],
)
def test_kernel_choice(platform, q, k, dtype, masked, kernel):
    with compile_for(platform):
        assert pick_kernel(q, k, dtype, masked, False) == kernel


def test_attention_by_xla_changes_attention_alone():
    """Otherwise a measurement of attention would measure everything else too."""
    long = (1, 2048, 1, 64)

    @jax.jit
    def attend(x):
        return attention(x, x, x)

    x = jax.ShapeDtypeStruct(long, jnp.bfloat16)
    with compile_for("tpu"):
        with attention_by("xla"):
            assert target_platform() == "tpu"
            assert pick_kernel(long, long, jnp.bfloat16, False, False) == "xla"
            assert "pallas_call" not in str(attend.trace(x).jaxpr)
        assert "pallas_call" in str(attend.trace(x).jaxpr)  # the other trace is not reused for it
    with compile_for("gpu"), attention_by("xla"):
        assert pick_kernel(long, long, jnp.bfloat16, False, False) == "xla"
        vast = (1, 16384, 2, 64)
        assert pick_kernel(vast, vast, jnp.bfloat16, False, False) == "xla_chunked"
    with pytest.raises(ValueError, match="'nonsense'"):
        attention_by("nonsense")


def test_the_program_grows_in_a_line_with_the_layers():
    """On a CPU the sum along residual connections was recomputed by each op that reads it."""

    def additions(layers):
        kw = {"dtype": jnp.float32, "param_dtype": jnp.float32, "rngs": nnx.Rngs(0)}
        sizes = {"heads": 2, "num_layers": layers, "cross_attention_dim": 8, "groups": 4}
        transformer = Transformer2DModel(16, **sizes, use_linear_projection=True, **kw)
        graphdef, weights = nnx.split(transformer)

        def loss(x):
            streams = {"text": TokenStream(jnp.ones((2, 5, 8)))}
            return jnp.square(nnx.merge(graphdef, weights)(x, streams)).mean()

        program = jax.jit(jax.grad(loss)).lower(jnp.ones((2, 4, 4, 16))).compile()
        return program.as_text().count(" add(")

    assert additions(4) < 2.1 * additions(2)
