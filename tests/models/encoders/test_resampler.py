"""IP-Adapter's image projections, layer by layer, against diffusers' classes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from persongen_jax.models.encoders.resampler import (
    FaceIDProjection,
    ImageProjection,
    Resampler,
    apply,
)
from persongen_jax.models.layers import UnusedRngs
from persongen_jax.weights.files.source import DictSource
from persongen_jax.weights.loader import load_module
from tests.helpers.ip_adapters import file_tensors, projection
from tests.helpers.twins import relative_error

TOLERANCE = 1e-5
IN, OUT = 24, 40
KW = {"dtype": jnp.float32, "param_dtype": jnp.float32}
BUILD = {
    "base": lambda rngs: ImageProjection(IN, OUT, rngs=rngs, **KW),
    "faceid": lambda rngs: FaceIDProjection(IN, OUT, rngs=rngs, **KW),
    "plus": lambda rngs: Resampler(IN, 128, OUT, num_tokens=6, heads=2, rngs=rngs, **KW),
}


def twins(kind):
    theirs = projection(kind, IN, OUT)
    tensors = {key: value.numpy() for key, value in file_tensors(theirs).items()}
    return load_module(lambda: BUILD[kind](UnusedRngs()), DictSource(tensors)), theirs


def features(kind, b=3):
    shape = (b, 7, IN) if kind == "plus" else (b, IN)
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def watch(module, names):
    """The outputs of the named parts of a PyTorch module at its next call."""
    seen = {}
    for name in names:
        part = module.get_submodule(name)
        part.register_forward_hook(lambda _, __, out, name=name: seen.update({name: out.numpy()}))
    return seen


@pytest.mark.parametrize("kind", BUILD)
def test_the_whole(kind):
    ours, theirs = twins(kind)
    with torch.no_grad():
        wanted = theirs(torch.from_numpy(features(kind))).numpy()
    found = jax.jit(lambda x: ours(x))(features(kind))
    assert found.shape == (3, ours.num_tokens, OUT) and ours.in_features == IN
    assert relative_error(found, wanted) < TOLERANCE
    # All-zero features are what the unconditional side reads.
    zeros = np.zeros_like(features(kind))
    with torch.no_grad():
        wanted = theirs(torch.from_numpy(zeros)).numpy()
    assert relative_error(jax.jit(lambda x: ours(x))(zeros), wanted) < TOLERANCE


@pytest.mark.parametrize("kind", ["base", "faceid"])
def test_the_small_ones_layer_by_layer(kind):
    ours, theirs = twins(kind)
    projected = {"base": "image_embeds", "faceid": "ff.net.2"}[kind]
    seen = watch(theirs, [projected, *(["ff.net.0"] if kind == "faceid" else [])])
    with torch.no_grad():
        theirs(torch.from_numpy(features(kind)))
    if kind == "faceid":
        found = apply(list(ours.proj)[:2], features(kind))
        assert relative_error(found, seen["ff.net.0"]) < TOLERANCE
        found = apply(ours.proj, features(kind))
    else:
        found = ours.proj(features(kind))
    assert relative_error(found, seen[projected]) < TOLERANCE


def test_the_resampler_layer_by_layer():
    ours, theirs = twins("plus")
    names = ["proj_in", "proj_out", *(f"layers.{i}" for i in range(4))]
    names += [f"layers.{i}.{part}" for i in range(4) for part in ("attn", "ff.0", "ff.1")]
    seen = watch(theirs, names)
    with torch.no_grad():
        theirs(torch.from_numpy(features("plus")))
    x = ours.proj_in(features("plus"))
    assert relative_error(x, seen["proj_in"]) < TOLERANCE
    latents = jnp.repeat(ours.latents[...], 3, axis=0)
    for i, (attend, feed_forward) in enumerate(ours.layers):
        attended = attend(latents, x)
        assert relative_error(attended, seen[f"layers.{i}.attn"]) < TOLERANCE
        latents = latents + attended
        assert relative_error(feed_forward[0](latents), seen[f"layers.{i}.ff.0"]) < TOLERANCE
        fed = apply(feed_forward, latents)
        assert relative_error(fed, seen[f"layers.{i}.ff.1"]) < TOLERANCE
        latents = latents + fed
        assert relative_error(latents, seen[f"layers.{i}"]) < TOLERANCE
    assert relative_error(ours.proj_out(latents), seen["proj_out"]) < TOLERANCE


@pytest.mark.parametrize("kind", BUILD)
def test_fresh_ones_tell_inputs_apart_and_learn(kind):
    module = BUILD[kind](nnx.Rngs(0))
    graphdef, params = nnx.split(module)
    assert not np.allclose(*np.asarray(module(features(kind, b=2))), atol=1e-3)

    @jax.jit
    def loss(params):
        tokens = nnx.merge(graphdef, params)(features(kind))
        return jnp.square(tokens - jnp.arange(OUT)).mean()

    grads = jax.tree.leaves(jax.grad(loss)(params))
    assert all(np.isfinite(g).all() and np.any(g) for g in grads)


def test_the_published_sizes():
    """formats.md's shapes: sdxl (ViT-bigG), vit-h, plus with ViT-H, faceid."""

    def shapes(build):
        params = nnx.state(nnx.eval_shape(build), nnx.Param)
        return {
            "/".join(map(str, path)): leaf.get_value().shape
            for path, leaf in nnx.to_flat_state(params)
        }

    kw = {**KW, "rngs": UnusedRngs()}
    assert shapes(lambda: ImageProjection(1280, 2048, **kw))["proj/kernel"] == (1280, 8192)
    assert shapes(lambda: ImageProjection(1024, 2048, **kw))["proj/kernel"] == (1024, 8192)
    faceid = shapes(lambda: FaceIDProjection(512, 2048, **kw))
    assert faceid["proj/0/kernel"] == (512, 1024) and faceid["proj/2/kernel"] == (1024, 8192)
    plus = shapes(lambda: Resampler(1280, 1280, 2048, heads=20, **kw))
    assert plus["latents"] == (1, 16, 1280) and plus["proj_out/kernel"] == (1280, 2048)
    assert plus["layers/3/0/to_kv/kernel"] == (1280, 2560)
    assert plus["layers/3/1/1/kernel"] == (1280, 5120)
