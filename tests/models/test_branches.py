"""Attention branches: the parallel composition against its formula, and inactive branches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from persongen_jax.diffusion.conditioning import (
    Conditioning,
    TokenStream,
    deinterleave,
    interleave,
    select,
)
from persongen_jax.models.attention import BasicTransformerBlock, CrossAttention
from persongen_jax.models.branches import (
    ParallelCrossAttention,
    add_branch,
    branch_names,
    remove_branches,
)
from persongen_jax.models.lora import new_lora
from persongen_jax.models.sdxl.unet import UNet2DConditionModel
from tests.helpers.configs import TINY_UNETS

TOLERANCE = 1e-5
HEADS, HEAD_DIM, DIM, CONTEXT = 3, 8, 20, 12


def cross_attention(param_dtype=jnp.float32, dtype=jnp.float32):
    return CrossAttention(
        DIM,
        heads=HEADS,
        head_dim=HEAD_DIM,
        cross_attention_dim=CONTEXT,
        dtype=dtype,
        param_dtype=param_dtype,
        rngs=nnx.Rngs(0),
    )


class Net(nnx.Module):
    """The smallest module with an ``attn2``: replaces the UNet."""

    def __init__(self, **dtypes):
        dtypes = {"dtype": jnp.float32, "param_dtype": jnp.float32, **dtypes}
        self.block = BasicTransformerBlock(
            24, heads=HEADS, cross_attention_dim=CONTEXT, **dtypes, rngs=nnx.Rngs(0)
        )


@pytest.fixture
def layer():
    """Two branches with their own weights."""
    layer = ParallelCrossAttention(cross_attention())
    rng = np.random.default_rng(1)
    for name in ("body", "background"):
        layer.add(name, None)
        for projection in (layer.branches[name].to_k, layer.branches[name].to_v):
            kernel = rng.standard_normal(projection.kernel.shape) / 3
            projection.kernel.set_value(jnp.asarray(kernel, jnp.float32))
    return layer


def make_stream(seed, length, mask=None, scale=None, b=3):
    tokens = np.random.default_rng(seed).standard_normal((b, length, CONTEXT)).astype(np.float32)
    return TokenStream(tokens, mask, None if scale is None else np.asarray(scale, np.float32))


def make_x(b=3):
    return np.random.default_rng(0).standard_normal((b, 10, DIM)).astype(np.float32)


RAGGED = np.arange(5)[None] < np.array([5, 2, 0])[:, None]  # the last example has none at all


def one_attention(q, k, v):
    """softmax(q k^T / sqrt(d)) v of one head, [n, d]."""
    scores = q @ k.T / np.sqrt(HEAD_DIM)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True) @ v


def formula(layer, x, streams):
    """methods.md, example by example and head by head, on the tokens that are there."""

    def array(variable):
        return np.asarray(variable[...], np.float64)

    out = []
    for row in range(len(x)):
        q = x[row].astype(np.float64) @ array(layer.to_q.kernel)
        z = np.zeros_like(q)
        for name, stream in streams.items():
            reader = layer if name == "text" else layer.branches[name]
            tokens = stream.tokens[row].astype(np.float64)
            if stream.mask is not None:
                tokens = tokens[stream.mask[row]]
            if not len(tokens):
                continue
            k, v = tokens @ array(reader.to_k.kernel), tokens @ array(reader.to_v.kernel)
            scale = 1.0 if stream.scale is None else stream.scale[row]
            for head in range(HEADS):
                of = slice(head * HEAD_DIM, (head + 1) * HEAD_DIM)
                z[:, of] += scale * one_attention(q[:, of], k[:, of], v[:, of])
        out.append(z @ array(layer.to_out[0].kernel) + array(layer.to_out[0].bias))
    return np.stack(out)


CASES = {
    "no mask": {"background": make_stream(2, 7)},
    "ragged": {"background": make_stream(2, 5, RAGGED)},
    "scaled": {"background": make_stream(2, 7, scale=[1.0, 0.3, -2.0])},
    "two": {"background": make_stream(2, 7, scale=[2, 2, 2]), "body": make_stream(3, 5, RAGGED)},
    "only the other": {"body": make_stream(3, 5, RAGGED, [0.5, 1.5, 9.0])},
    "none": {},
}


@pytest.mark.parametrize("case", CASES)
def test_equals_the_formula(case, layer):
    text = make_stream(1, 6, np.arange(6)[None] < np.array([6, 4, 1])[:, None])
    streams = {"text": text, **CASES[case]}
    found = jax.jit(lambda x, streams: layer(x, streams))(make_x(), streams)
    assert np.abs(found - formula(layer, make_x(), streams)).max() < TOLERANCE


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("weight", [1.0, np.nan])
def test_absent_streams_add_exactly_nothing(compiled, weight, layer):
    """Whatever the branch's weights: here even with NaN."""
    for projection in (layer.branches["background"].to_k, layer.branches["background"].to_v):
        projection.kernel.set_value(weight * projection.kernel[...])
    jit = jax.jit if compiled else (lambda f: f)
    text = make_stream(1, 6)
    base = jit(lambda x, streams: cross_attention()(x, streams))(make_x(), {"text": text})
    run = jit(lambda x, streams: layer(x, streams))
    assert np.array_equal(run(make_x(), {"text": text}), base)
    masked = make_stream(2, 5, np.zeros((3, 5), bool), scale=[1, 2, 3])
    assert np.array_equal(run(make_x(), {"text": text, "background": masked}), base)
    ragged = run(make_x(), {"text": text, "background": make_stream(2, 5, RAGGED)})
    assert np.array_equal(ragged[2], base[2])
    assert not np.array_equal(ragged[:2], base[:2])


def test_masked_tokens_have_no_influence_and_gradients_stay_numbers(layer):
    graphdef, state = nnx.split(layer)
    stream, text = make_stream(2, 5, RAGGED), make_stream(1, 6)
    other = TokenStream(np.where(RAGGED[..., None], stream.tokens, 7.0), RAGGED)

    @jax.jit
    def loss(state, stream, row):
        out = nnx.merge(graphdef, state)(make_x(), {"text": text, "background": stream})
        return jnp.square(out[row]).sum()

    for row in range(3):
        assert np.array_equal(loss(state, stream, row), loss(state, other, row))
    grads = jax.jit(jax.grad(loss))(state, stream, 2)["branches"]["background"]
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(grads))  # nor is one NaN
    grads = jax.jit(jax.grad(loss))(state, stream, 1)["branches"]["background"]
    assert all(np.any(leaf) and np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))


def test_other_scales_and_masks_compile_nothing(layer):
    run = jax.jit(lambda x, streams: layer(x, streams))
    outs = [
        run(make_x(), {"text": make_stream(1, 6), "background": make_stream(2, 5, mask, scale)})
        for mask, scale in ((RAGGED, [1, 1, 1]), (~RAGGED, [1, 1, 1]), (RAGGED, [0, 0.5, 1]))
    ]
    assert run._cache_size() == 1
    assert not np.allclose(outs[0], outs[1]) and not np.allclose(outs[0], outs[2])


def test_scales_and_masks_go_with_their_examples():
    def conditioning(seed, scale):
        streams = {"text": make_stream(seed, 6), "body": make_stream(seed + 1, 5, RAGGED, scale)}
        return Conditioning(streams)

    first, second = conditioning(1, [1, 2, 3]), conditioning(5, [4, 5, 6])
    joined = interleave(first, second).streams["body"]
    assert joined.scale.tolist() == [1, 4, 2, 5, 3, 6] and joined.mask.shape == (6, 5)
    for part, whole in zip(deinterleave(joined.tokens, 2), (first, second), strict=True):
        assert np.array_equal(part, whole.streams["body"].tokens)
    mixed = select(np.array([True, False, True]), first, second).streams["body"]
    assert mixed.scale.tolist() == [1, 5, 3]
    assert np.array_equal(mixed.tokens[1], second.streams["body"].tokens[1])


def test_a_branch_starts_as_a_float32_copy_without_lora():
    net = Net(param_dtype=jnp.bfloat16, dtype=jnp.bfloat16)
    base = net.block.attn2
    base.to_k.lora = new_lora(base.to_k, 2, rngs=nnx.Rngs(0))
    add_branch(net, "background")
    layer = net.block.attn2
    assert isinstance(layer, ParallelCrossAttention) and layer.to_k.lora is not None
    for name in ("to_k", "to_v"):
        copy, original = getattr(layer.branches["background"], name), getattr(base, name)
        assert copy.kernel[...].dtype == jnp.float32 and copy.dtype == jnp.bfloat16
        assert np.array_equal(copy.kernel[...], original.kernel[...].astype(jnp.float32))
        assert copy.lora is None
    streams = {"text": make_stream(1, 6), "background": make_stream(2, 7, scale=[1, 1, 1])}
    assert layer(jnp.ones((3, 10, 24)), streams).dtype == jnp.bfloat16


def test_a_float32_base_shares_no_buffer_with_its_branch():
    """Training donates the trained buffers; the frozen ones must survive that."""
    net = Net()
    add_branch(net, "background")
    layer = net.block.attn2
    for name in ("to_k", "to_v"):
        copy = getattr(layer.branches["background"], name).kernel[...]
        jax.jit(lambda x: x + 1, donate_argnums=0)(copy)
        assert np.isfinite(getattr(layer, name).kernel[...]).all()


@pytest.fixture(scope="module")
def unet():
    return UNet2DConditionModel(TINY_UNETS["sd15"], rngs=nnx.Rngs(0))


@pytest.mark.slow
def test_on_a_whole_unet(unet):
    x = jax.random.normal(jax.random.key(0), (2, 8, 8, 4))
    rng = np.random.default_rng(0)
    width = TINY_UNETS["sd15"]["cross_attention_dim"]
    text, background = rng.standard_normal((2, 2, 7, width)).astype(np.float32)

    def paint(**stream):
        conditioning = Conditioning({"text": TokenStream(text)})
        if stream:
            conditioning = conditioning.with_stream("background", background, **stream)
        graphdef, state = nnx.split(unet)
        run = jax.jit(lambda state, x, c: nnx.merge(graphdef, state)(x, 500, c))
        return np.asarray(run(state, x, conditioning))

    base = paint()
    add_branch(unet, "background")
    assert branch_names(unet) == ["background"]
    assert np.array_equal(paint(), base)
    nothing, half = np.zeros((2, 7), bool), np.array([[True] * 7, [False] * 7])
    one = np.ones(2, np.float32)
    assert np.array_equal(paint(mask=nothing, scale=one), base)
    assert np.array_equal(paint(scale=0 * one), base)
    mixed, whole = paint(mask=half), paint(scale=one)
    assert np.array_equal(mixed[1], base[1]) and not np.allclose(mixed[0], base[0])
    assert not np.allclose(whole, base)
    with pytest.raises(ValueError, match="'background' already"):
        add_branch(unet, "background")
    with pytest.raises(ValueError, match="'text' already"):
        add_branch(unet, "text")
    remove_branches(unet)
    assert branch_names(unet) == []
    assert np.array_equal(paint(mask=half), base)


def test_a_module_without_cross_attention_is_named():
    with pytest.raises(ValueError, match="Linear has no cross-attention blocks"):
        add_branch(cross_attention().to_q, "background")
