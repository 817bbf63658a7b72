"""PuLID's attention against the authors' processor; people in regions; nothing where nobody is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from persongen_jax.diffusion.conditioning import TokenStream
from persongen_jax.models.attention import BasicTransformerBlock, CrossAttention
from persongen_jax.models.branches import add_branch, put_branch, take_branch
from persongen_jax.models.id_attention import IDCrossAttention, projected, set_mode
from persongen_jax.models.layers import UnusedRngs
from persongen_jax.weights.files.source import DictSource
from persongen_jax.weights.loader import load_module
from tests.helpers.published_goldens import golden, relative_gap, weights

KW = {"dtype": jnp.float32, "param_dtype": jnp.float32, "rngs": UnusedRngs()}
NAME = "pulid_attention"


@pytest.fixture(scope="module")
def layer():
    sizes, _ = golden(NAME)
    dims = {"heads": sizes["heads"], "head_dim": sizes["dim_head"]}
    dims["cross_attention_dim"] = sizes["cross_attention_dim"]
    make = lambda: CrossAttention(sizes["query_dim"], **dims, **KW)  # noqa: E731
    layer = IDCrossAttention(load_module(make, DictSource(weights(NAME, "attn2"))))
    layer.add("identity", None)
    own, branch = weights(NAME, "processor"), layer.branches["identity"]
    branch.to_k.kernel.set_value(jnp.asarray(own["id_to_k.weight"].T))
    branch.to_v.kernel.set_value(jnp.asarray(own["id_to_v.weight"].T))
    return layer


@nnx.jit
def run(layer, hidden, streams):
    return layer(hidden, streams)


def attend(layer, mode, zeros, scale, hidden="in/hidden", tokens="in/id_tokens", **stream):
    arrays = golden(NAME)[1]
    branch = layer.branches["identity"]
    branch.mode, branch.zeros = mode, zeros
    given = arrays[tokens] if isinstance(tokens, str) else tokens
    identity = TokenStream(given, scale=jnp.full(len(given), scale), **stream)
    streams = {"text": TokenStream(arrays["in/text"]), "identity": identity}
    return run(layer, arrays[hidden] if isinstance(hidden, str) else hidden, streams)


@pytest.mark.parametrize("mode", ["plain", "ortho", "ortho_v2"])
def test_as_the_authors_processor(layer, mode):
    arrays = golden(NAME)[1]
    for zeros in (0, 8, 16, 20):
        found = attend(layer, mode, zeros, 0.8)
        assert relative_gap(found, arrays[f"out/{mode}_zero{zeros}_s0.8"]) < 1e-5, zeros
    whole = attend(layer, mode, 8, 1.0)
    assert relative_gap(whole, arrays[f"out/{mode}_zero8_s1.0"]) < 1e-5
    many = attend(layer, mode, 20, 0.8, tokens="in/id_tokens_32")
    assert relative_gap(many, arrays[f"out/{mode}_zero20_s0.8_32tokens"]) < 1e-5
    image = arrays["in/hidden_4d"]  # NCHW, which the processor flattens and adds to
    b, c, h, w = image.shape
    found = attend(layer, mode, 8, 0.8, hidden=image.reshape(b, c, -1).swapaxes(1, 2))
    wanted = arrays[f"out/{mode}_zero8_s0.8_image4d"].reshape(b, c, -1).swapaxes(1, 2)
    assert relative_gap(found, wanted) < 1e-5


@pytest.mark.parametrize("mode", ["plain", "ortho", "ortho_v2"])
def test_nobody_and_scale_0_are_the_text_alone_to_the_bit(layer, mode):
    arrays = golden(NAME)[1]
    alone = run(layer, arrays["in/hidden"], {"text": TokenStream(arrays["in/text"])})
    assert relative_gap(alone, arrays["out/text_only"]) < 1e-5
    masked = attend(layer, mode, 8, 1.0, mask=jnp.zeros((2, 10), bool))
    assert np.array_equal(masked, alone)
    assert np.array_equal(attend(layer, mode, 8, 0.0), alone)
    # A token that is masked is as if it were not there.
    some = jnp.arange(10)[None].repeat(2, 0) < 7
    found = attend(layer, mode, 8, 1.0, mask=some)
    wanted = attend(layer, mode, 8, 1.0, tokens=arrays["in/id_tokens"][:, :7])
    np.testing.assert_allclose(found, wanted, atol=2e-5)


@pytest.mark.parametrize("mode", ["plain", "ortho_v2"])
def test_each_person_acts_in_its_region_as_it_does_alone(layer, mode):
    arrays = golden(NAME)[1]
    first, second = arrays["in/id_tokens"], arrays["in/id_tokens"][::-1]
    where = np.zeros((2, 2, 12, 1), np.float32)
    where[:, 0, :5], where[:, 1, 8:] = 1, 1
    both = jnp.concatenate([first, second], axis=1)
    found = attend(layer, mode, 8, 0.8, tokens=both, region=jnp.asarray(where))
    nobody = attend(layer, mode, 8, 0.0)
    for rows, tokens in ((slice(0, 5), first), (slice(8, 12), second)):
        alone = attend(layer, mode, 8, 0.8, tokens=tokens)
        np.testing.assert_allclose(found[:, rows], alone[:, rows], atol=2e-5)
    np.testing.assert_allclose(found[:, 5:8], nobody[:, 5:8], atol=2e-5)


def one_block():
    net = nnx.Module()
    net.block = BasicTransformerBlock(
        24, heads=3, cross_attention_dim=20, **{**KW, "rngs": nnx.Rngs(0)}
    )
    return net


def test_another_adapters_branch_adds_what_it_reads_whichever_is_loaded_first():
    first, second = one_block(), one_block()
    add_branch(first, "identity", IDCrossAttention)
    add_branch(first, "style")
    add_branch(second, "style")
    taken = take_branch(second, "style")  # as while a method is loaded
    add_branch(second, "identity", IDCrossAttention)
    put_branch(second, "style", taken)
    rng, sizes = np.random.default_rng(0), ((6, 24), (4, 20), (5, 20), (7, 20))
    x, text, identity, style = (rng.standard_normal((1, *size), np.float32) for size in sizes)

    def read(net, *shown):
        set_mode(net, "identity", "ortho_v2", 8)
        streams = {"text": TokenStream(text)}
        for name, tokens in (("identity", identity), ("style", style)):
            mask = jnp.full(tokens.shape[:2], name in shown)
            streams[name] = TokenStream(tokens, mask)
        return np.asarray(run(net.block.attn2, x, streams))

    both, alone = read(first, "identity", "style"), read(first, "identity")
    np.testing.assert_allclose(read(second, "identity", "style"), both, atol=1e-6)
    np.testing.assert_allclose(both, alone + read(first, "style") - read(first), atol=1e-5)
    assert np.abs(both - alone).max() > 1e-2


def test_wrong_settings_are_named():
    net = one_block()
    add_branch(net, "identity", IDCrossAttention)
    set_mode(net, "identity", "ortho", 16)
    branch = net.block.attn2.branches["identity"]
    assert (branch.mode, branch.zeros) == ("ortho", 16)
    with pytest.raises(ValueError, match="mode 'v2' is unknown: give plain, ortho, ortho_v2"):
        set_mode(net, "identity", "v2", 8)
    with pytest.raises(ValueError, match="zero tokens is -1: give a whole number from 0"):
        set_mode(net, "identity", "ortho", -1)


def test_where_the_text_gives_nothing_the_gradient_is_finite():
    a, nothing = jnp.ones((1, 3, 2)), jnp.zeros((1, 3, 2))
    gradients = jax.grad(lambda a, h: projected(a, h).sum(), (0, 1))(a, nothing)
    assert all(np.isfinite(g).all() for g in gradients)
