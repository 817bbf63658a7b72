"""The base that the pipeline goldens share: what is written of it loads and gives their numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from persongen_jax.diffusion.conditioning import Conditioning, TokenStream
from persongen_jax.weights.formats.sdxl.loading import load_sdxl
from tests.helpers.published_goldens import golden, relative_gap, write_base


@pytest.mark.slow  # the pipelines' runs, which start from it, have tests of their own
def test_base_gives_the_stored_numbers(tmp_path):
    _, arrays = golden("tiny_sdxl")
    base = load_sdxl(write_base(tmp_path))
    streams = {"text": TokenStream(jnp.asarray(arrays["in/prompt_embeds"]))}
    pooled, ids = (jnp.asarray(arrays[f"in/{name}"]) for name in ("pooled", "time_ids"))
    latents = jnp.asarray(arrays["in/latents"]).transpose(0, 2, 3, 1)
    times = jnp.full(2, arrays["in/timestep"][0])
    unet, state = nnx.split(base.model.unet)
    found = jax.jit(lambda *inputs: nnx.merge(unet, inputs[0])(*inputs[1:]))(
        state, latents, times, Conditioning(streams, pooled, ids)
    )
    assert relative_gap(found.transpose(0, 3, 1, 2), arrays["out/eps"]) < 1e-5
    ids = jnp.stack([arrays["in/ids1"], arrays["in/ids2"]], axis=1).astype(np.int32)
    view, state = nnx.split(base.model.conditioner())
    states, pooled = jax.jit(lambda state, ids: nnx.merge(view, state).encode_prompt(ids))(
        state, ids
    )
    assert relative_gap(states, arrays["out/text_embeds"]) < 1e-5
    assert relative_gap(pooled, arrays["out/text_pooled"]) < 1e-5
