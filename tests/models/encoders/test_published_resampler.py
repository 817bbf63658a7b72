"""InstantID's resampler against the authors' own, layer by layer; masked places of references."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from persongen_jax.models.encoders.resampler import Resampler, apply
from persongen_jax.models.layers import UnusedRngs
from persongen_jax.weights.files.source import DictSource
from persongen_jax.weights.loader import load_module
from tests.helpers.published_goldens import golden, relative_gap, weights

TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def ours():
    config, _ = golden("instantid_resampler")
    kw = {"dtype": jnp.float32, "param_dtype": jnp.float32, "rngs": UnusedRngs()}
    return load_module(
        lambda: Resampler(
            config["embedding_dim"],
            config["dim"],
            config["output_dim"],
            num_tokens=config["num_queries"],
            heads=config["heads"],
            head_dim=config["dim_head"],
            num_layers=config["depth"],
            **kw,
        ),
        DictSource(weights("instantid_resampler")),
    )


def layers(module, x):
    """What each layer adds, and the tokens."""
    out = {"mid_proj_in": module.proj_in(x)}
    latents = jnp.repeat(module.latents[...], len(x), axis=0)
    for i, (attend, feed_forward) in enumerate(module.layers):
        out[f"mid_layer{i}_attn_added"] = attend(latents, out["mid_proj_in"])
        latents += out[f"mid_layer{i}_attn_added"]
        out[f"mid_layer{i}_ff_added"] = apply(feed_forward, latents)
        latents += out[f"mid_layer{i}_ff_added"]
    return {**out, "tokens": module.norm_out(module.proj_out(latents))}


def test_layer_by_layer_and_the_zero_embedding(ours):
    _, arrays = golden("instantid_resampler")
    run = jax.jit(lambda x: (layers(ours, x), ours(x)))
    found, tokens = run(arrays["in/x"])
    assert relative_gap(tokens, arrays["out/tokens"]) < TOLERANCE
    for name, value in found.items():
        assert relative_gap(value, arrays[f"out/{name}"]) < TOLERANCE, name
    assert relative_gap(run(0 * arrays["in/x"])[1], arrays["out/tokens_zero"]) < TOLERANCE


def test_three_faces_in_four_places(ours):
    _, arrays = golden("instantid_resampler")
    x = np.full((2, 4, 512), 7.0, np.float32)  # what an absent place holds does not matter
    places, mask = [3, 0, 2], np.array([[1, 0, 1, 1]] * 2, bool)
    x[:, places] = arrays["in/x_three_faces"]  # nor does the order of the others
    found = jax.jit(ours)(x, mask)
    assert relative_gap(found, arrays["out/tokens_three_faces"]) < TOLERANCE
