"""The parallel branch against IP-Adapter's and InstantID's own attention processors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from persongen_jax.diffusion.conditioning import TokenStream
from persongen_jax.models.attention import CrossAttention
from persongen_jax.models.branches import ParallelCrossAttention
from persongen_jax.models.layers import UnusedRngs
from persongen_jax.weights.files.source import DictSource
from persongen_jax.weights.loader import load_module
from tests.helpers.published_goldens import golden, relative_gap, weights

CONFIG, ARRAYS = golden("decoupled_attention")


@pytest.fixture(scope="module")
def read():
    """The layer, compiled: (hidden [b, n, d], scale, region) to [b, n, d]."""
    kw = {"dtype": jnp.float32, "param_dtype": jnp.float32, "rngs": UnusedRngs()}
    base = load_module(
        lambda: CrossAttention(
            CONFIG["query_dim"],
            heads=CONFIG["heads"],
            head_dim=CONFIG["dim_head"],
            cross_attention_dim=CONFIG["cross_attention_dim"],
            **kw,
        ),
        DictSource(weights("decoupled_attention", "attn2")),
    )
    layer = ParallelCrossAttention(base)
    layer.add("identity", None)
    own, branch = weights("decoupled_attention", "processor"), layer.branches["identity"]
    branch.to_k.kernel.set_value(jnp.asarray(own["to_k_ip.weight"].T))
    branch.to_v.kernel.set_value(jnp.asarray(own["to_v_ip.weight"].T))
    tokens = jnp.asarray(ARRAYS["in/text_then_image_tokens"])
    text, image = jnp.split(tokens, [CONFIG["text_tokens"]], axis=1)

    @jax.jit
    def run(hidden, scale, region=None):
        scales = jnp.full(2, scale, jnp.float32)
        streams = {"text": TokenStream(text)}
        streams["identity"] = TokenStream(image, None, scales, region)
        return layer(hidden, streams)

    return run


@pytest.mark.parametrize("name", ["seq_scale0.0", "seq_scale0.8", "seq_scale1.0"])
def test_a_sequence(name, read):
    scale = float(name.removeprefix("seq_scale"))
    found = read(ARRAYS["in/hidden"], scale)
    assert relative_gap(found, ARRAYS[f"out/{name}"]) < 1e-5
    if scale == 0:
        assert relative_gap(found, ARRAYS["out/plain_text_only"]) < 1e-5
    if scale == CONFIG["scale"]:
        assert relative_gap(found, ARRAYS["out/instantid_seq_scale0.8"]) < 1e-5


def test_an_image_and_a_region_of_it(read):
    """The mask in their code's own sampling: the nearest of (32, 48) at (4, 6)."""
    hidden = ARRAYS["in/hidden_4d"]
    b, d, h, w = hidden.shape
    rows = hidden.transpose(0, 2, 3, 1).reshape(b, h * w, d)
    mask = ARRAYS["in/region_mask"]
    near = mask[:: mask.shape[0] // h, :: mask.shape[1] // w]
    region = np.broadcast_to(near.reshape(1, 1, h, w), (b, 1, h, w))
    for where, name in ((None, "image4d_scale0.8"), (region, "image4d_region")):
        found = np.asarray(read(rows, 0.8, where)).reshape(b, h, w, d).transpose(0, 3, 1, 2)
        assert relative_gap(found, ARRAYS[f"out/instantid_{name}"]) < 1e-5
