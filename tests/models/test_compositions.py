"""Cascade, and regions in both compositions, against plain transcriptions of the formulas."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from persongen_jax.diffusion.conditioning import TokenStream
from persongen_jax.models.attention import BasicTransformerBlock, CrossAttention
from persongen_jax.models.branches import (
    CascadeCrossAttention,
    CascadeLayer,
    ParallelCrossAttention,
    add_branch,
    branch_names,
    remove_branches,
)
from persongen_jax.models.lora import new_lora

TOLERANCE = 1e-5
HEADS, HEAD_DIM, DIM, CONTEXT, B = 2, 8, 16, 12, 3
SIDE = 4  # of the image whose positions are the queries
ORDER = ("body", "background", "identity")  # not alphabetical
KW = {"dtype": jnp.float32, "param_dtype": jnp.float32}
RAGGED = np.arange(4)[None] < np.array([4, 2, 0])[:, None]  # the last example has none at all


class Net(nnx.Module):
    """The smallest module with an ``attn2``: replaces the UNet."""

    def __init__(self, **dtypes):
        dtypes = {**KW, **dtypes}
        self.block = BasicTransformerBlock(
            DIM, heads=HEADS, cross_attention_dim=CONTEXT, **dtypes, rngs=nnx.Rngs(0)
        )


def make_net(composition, names=ORDER):
    """Random numbers in every parameter, norms, biases and zero kernels too."""
    net = Net()
    for name in names:
        add_branch(net, name, composition)
    rng = np.random.default_rng(0)
    for variable in jax.tree.leaves(nnx.state(net), is_leaf=lambda x: isinstance(x, nnx.Variable)):
        noise = rng.standard_normal(variable.get_value().shape).astype(np.float32)
        fan_in = noise.shape[0] if noise.ndim == 2 else 9
        variable.set_value(jnp.asarray(noise / fan_in**0.5 + (noise.ndim == 1)))
    return net


def stream(seed, length, mask=None, scale=None, region=None):
    tokens = np.random.default_rng(seed).standard_normal((B, length, CONTEXT)).astype(np.float32)
    scale = None if scale is None else np.asarray(scale, np.float32)
    return TokenStream(tokens, mask, scale, region)


def make_region(groups, seed=9):
    return np.random.default_rng(seed).random((B, groups, SIDE, SIDE)).astype(np.float32)


def make_x():
    shape = (B, SIDE * SIDE, DIM)
    return np.random.default_rng(1).standard_normal(shape).astype(np.float32)


def array(variable):
    return np.asarray(variable[...], np.float64)


def plain_norm(norm, x):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt(x.var(-1, keepdims=True) + norm.eps) * array(norm.scale) + array(
        norm.bias
    )


def plain_attention(layer, reader, x, tokens):
    """softmax(Q K^T / sqrt(d)) V of all heads, [n, inner]; 0 without tokens."""
    q = x @ array(layer.to_q.kernel)
    k, v = tokens @ array(reader.to_k.kernel), tokens @ array(reader.to_v.kernel)
    out = np.zeros_like(q)
    for head in range(HEADS if len(tokens) else 0):
        of = slice(head * HEAD_DIM, (head + 1) * HEAD_DIM)
        scores = q[:, of] @ k[:, of].T / HEAD_DIM**0.5
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        out[:, of] = weights / weights.sum(-1, keepdims=True) @ v[:, of]
    return out


def project(layer, z):
    return z @ array(layer.to_out[0].kernel) + array(layer.to_out[0].bias)


def parts(stream, row):
    """(valid tokens, weight [n, 1]) for each part of one example's stream."""
    region = stream.region
    groups = 1 if region is None else region.shape[1]
    mask = np.ones(stream.tokens.shape[:2], bool) if stream.mask is None else stream.mask
    each = stream.tokens.shape[1] // groups
    for g in range(groups):
        of = slice(g * each, (g + 1) * each)
        weight = 1.0 if region is None else region[row, g].reshape(-1, 1).astype(np.float64)
        yield stream.tokens[row, of][mask[row, of]].astype(np.float64), weight


def scale_of(stream, row):
    return 1.0 if stream.scale is None else float(stream.scale[row])


def cascade_formula(layer, norm, x, streams):
    """methods.md: x_b = x_{b-1} + scale_b * A_b(norm_b(x_{b-1})), general first."""
    out = []
    for row in range(B):
        h = x[row].astype(np.float64)
        ((text, _),) = parts(streams["text"], row)
        h = h + project(layer, plain_attention(layer, layer, plain_norm(norm, h), text))
        for name in ORDER:
            added, branch = 0.0, layer.branches[name]
            for tokens, weight in parts(streams[name], row) if name in streams else ():
                if len(tokens):
                    z = plain_attention(branch, branch, plain_norm(branch.norm, h), tokens)
                    added = added + weight * project(branch, z)
            h = h + (scale_of(streams[name], row) if name in streams else 0) * added
        out.append(h)
    return np.stack(out)


def parallel_formula(layer, norm, x, streams):
    """methods.md: Z = to_out( A(Q, K_text, V_text) + sum_b scale_b * A(Q, K_b, V_b) )."""
    out = []
    for row in range(B):
        h = plain_norm(norm, x[row].astype(np.float64))
        ((text, _),) = parts(streams["text"], row)
        z = plain_attention(layer, layer, h, text)
        for name in ORDER:
            for tokens, weight in parts(streams[name], row) if name in streams else ():
                read = weight * plain_attention(layer, layer.branches[name], h, tokens)
                z = z + scale_of(streams[name], row) * read
        out.append(x[row] + project(layer, z))
    return np.stack(out)


TEXT = stream(1, 6, np.arange(6)[None] < np.array([6, 4, 1])[:, None])
TWO_PEOPLE = stream(4, 8, np.concatenate([RAGGED, RAGGED[::-1]], 1), [1, 0.4, 2], make_region(2))
CASES = {
    "all": {n: stream(2 + i, 5, scale=[1.0, 0.3, -2.0]) for i, n in enumerate(ORDER)},
    "ragged": {"identity": stream(2, 4, RAGGED), "background": stream(3, 5)},
    "only the last": {"identity": stream(2, 4, RAGGED)},
    "two people": {"identity": TWO_PEOPLE, "body": stream(3, 5)},
    "one region": {"identity": stream(2, 4, RAGGED, region=make_region(1))},
    "none": {},
}
FORMULAS = {CascadeCrossAttention: cascade_formula, ParallelCrossAttention: parallel_formula}


@pytest.fixture(scope="module", params=FORMULAS, ids=lambda c: c.__name__)
def block(request):
    return make_net(request.param).block


@functools.partial(jax.jit, static_argnums=0)
def compiled(graphdef, state, streams):
    block = nnx.merge(graphdef, state)
    return block.attn2.add_to(make_x(), block.norm2, streams)


def run(block, streams):
    return np.asarray(compiled(*nnx.split(block), streams))


@pytest.mark.parametrize("case", CASES)
def test_equals_the_formula(case, block):
    streams = {"text": TEXT, **CASES[case]}
    wanted = FORMULAS[type(block.attn2)](block.attn2, block.norm2, make_x(), streams)
    assert np.abs(run(block, streams) - wanted).max() < TOLERANCE * max(1, np.abs(wanted).max())


@pytest.mark.parametrize("region", [None, make_region(2)])
def test_absent_streams_add_exactly_nothing(region, block):
    absent = run(block, {"text": TEXT})
    masked = stream(2, 8, np.zeros((B, 8), bool), [1, 2, 3], region)
    assert np.array_equal(run(block, {"text": TEXT, "identity": masked}), absent)
    silent = stream(2, 8, scale=[0, 0, 0], region=region)
    assert np.array_equal(run(block, {"text": TEXT, "body": silent}), absent)
    there = stream(2, 8, scale=[1, 1, 1], region=region)
    assert not np.allclose(run(block, {"text": TEXT, "identity": there}), absent)


def test_a_region_of_zeros_silences_one_person_and_ones_change_nothing(block):
    both = TWO_PEOPLE.region.copy()
    both[:, 1] = 0
    first, other = TWO_PEOPLE.tokens.copy(), TWO_PEOPLE.tokens.copy()
    other[:, 4:] += 1
    mask, scale = TWO_PEOPLE.mask, TWO_PEOPLE.scale
    outs = [
        run(block, {"text": TEXT, "identity": TokenStream(tokens, mask, scale, both)})
        for tokens in (first, other)
    ]
    assert np.array_equal(*outs)
    ones = np.ones((B, 1, SIDE, SIDE), np.float32)
    everywhere = run(block, {"text": TEXT, "identity": stream(2, 4, RAGGED, region=ones)})
    plain = run(block, {"text": TEXT, "identity": stream(2, 4, RAGGED)})
    assert np.allclose(everywhere, plain, atol=1e-6)


def test_other_regions_compile_nothing(block):
    streams = [
        {"text": TEXT, "identity": stream(2, 8, region=make_region(2, seed))} for seed in (1, 2)
    ]
    first = run(block, streams[0])
    size = compiled._cache_size()
    assert not np.allclose(run(block, streams[1]), first)
    assert compiled._cache_size() == size


def test_a_region_is_averaged_down_to_the_layers_resolution():
    region = np.zeros((1, 1, 8, 8), np.float32)
    region[..., :4] = 1
    found = TokenStream(np.zeros((1, 4, 2)), region=region).at_resolution(2, 4).region
    assert found.shape == (1, 1, 2, 4)
    assert np.allclose(found, [1, 0.875, 0.125, 0])
    untouched = TokenStream(np.zeros((1, 4, 2)))
    assert untouched.at_resolution(2, 4) is untouched


def test_a_cascade_starts_as_the_base_and_shares_no_buffer():
    net = Net(param_dtype=jnp.bfloat16)
    base = net.block.attn2
    base.to_q.lora = new_lora(base.to_q, 2, rngs=nnx.Rngs(0))
    streams = {"text": TEXT, **CASES["all"]}
    without = run(net.block, {"text": TEXT})
    for name in ORDER:
        add_branch(net, name, CascadeCrossAttention)
    assert np.array_equal(run(net.block, streams), without)
    layer = net.block.attn2.branches["body"]
    assert isinstance(layer, CascadeLayer) and layer.to_q.lora is None
    pairs = [(layer.norm.scale, net.block.norm2.scale), (layer.to_q.kernel, base.to_q.kernel)]
    for copy, original in pairs:
        assert copy[...].dtype == jnp.float32
        assert np.array_equal(copy[...], original[...].astype(jnp.float32))
        assert copy[...] is not original[...]
    assert not np.any(layer.to_out[0].kernel[...]) and not np.any(layer.to_out[0].bias[...])


def test_compositions_follow_each_other_but_do_not_mix():
    net = make_net(CascadeCrossAttention)
    with pytest.raises(ValueError, match="one composition"):
        add_branch(net, "more", ParallelCrossAttention)
    wanted = run(net.block, {"text": TEXT})
    remove_branches(net)
    assert branch_names(net) == []
    assert np.array_equal(run(net.block, {"text": TEXT, "body": stream(2, 4)}), wanted)
    add_branch(net, "identity")
    assert isinstance(net.block.attn2, CrossAttention) and branch_names(net) == ["identity"]
