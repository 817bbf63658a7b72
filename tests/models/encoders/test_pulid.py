"""PuLID's encoders against the authors' own classes, their sizes, and pictures that are absent."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from persongen_jax.models.encoders.pulid import IDEncoder, IDFormer
from persongen_jax.models.layers import UnusedRngs
from persongen_jax.weights.files.source import DictSource
from persongen_jax.weights.loader import load_module, parameter_leaves, torch_key
from tests.helpers.published_goldens import golden, relative_gap, weights

KW = {"dtype": jnp.float32, "param_dtype": jnp.float32}


def load(name, make):
    return load_module(make, DictSource(weights(name)))


def maps_of(arrays, suffix=""):
    return tuple(arrays[f"in/y{k}{suffix}"] for k in range(5))


def test_version_1_as_the_authors():
    sizes, arrays = golden("pulid_v1_idencoder")
    dims = (sizes["width"], sizes["feature_width"], sizes["context_dim"])
    encoder = load("pulid_v1_idencoder", lambda: IDEncoder(*dims, **KW, rngs=UnusedRngs()))
    assert encoder.num_tokens == 10
    run = nnx.jit(lambda encoder, x, maps: encoder(x, maps))
    x, maps = arrays["in/x"], maps_of(arrays)
    assert relative_gap(run(encoder, x, maps), arrays["out/tokens"]) < 1e-5
    nothing = jax.tree.map(np.zeros_like, (x, maps))
    assert relative_gap(run(encoder, *nothing), arrays["out/tokens_zero"]) < 1e-5


def test_version_1_1_as_the_authors_with_any_number_of_pictures():
    c, arrays = golden("pulid_v11_idformer")
    dims = (c["id_width"], c["feature_width"], c["dim"], c["output_dim"])
    sizes = {"heads": c["heads"], "head_dim": c["dim_head"], "num_tokens": c["num_queries"]}
    sizes["hidden_features"] = c["dim"] * c["ff_mult"]
    former = load("pulid_v11_idformer", lambda: IDFormer(*dims, **sizes, **KW, rngs=UnusedRngs()))
    run = nnx.jit(lambda former, x, maps, mask: former(x, maps, mask))

    def pictures(x, maps, count=4):
        """Padded to ``count`` places with what must not be read, and which there are."""
        b, r = x.shape[:2]
        maps = [y.reshape(b, r, -1, y.shape[-1]) for y in maps]
        own = [np.full((b, count, *a.shape[2:]), 7, np.float32) for a in (x, *maps)]
        for padded, a in zip(own, (x, *maps), strict=True):
            padded[:, :r] = a
        return own[0], tuple(own[1:]), np.arange(count)[None].repeat(b, 0) < r

    x, maps = arrays["in/x"][:, None], maps_of(arrays)
    one, three = (
        pictures(x, maps),
        pictures(arrays["in/x_three_images"], maps_of(arrays, "_three_images")),
    )
    assert relative_gap(run(former, *one), arrays["out/tokens"]) < 5e-5
    assert relative_gap(run(former, *three), arrays["out/tokens_three_images"]) < 5e-5
    nothing = jax.tree.map(np.zeros_like, (x, maps))
    assert relative_gap(run(former, *pictures(*nothing)), arrays["out/tokens_zero"]) < 5e-5


@pytest.mark.parametrize(
    ("make", "tensors", "millions"),
    [
        (lambda: IDEncoder(1280, 1024, 2048, **KW, rngs=UnusedRngs()), 110, 54.886),
        (lambda: IDFormer(1280, 1024, 1024, 2048, heads=16, **KW, rngs=UnusedRngs()), 172, 151.398),
    ],
)
def test_published_sizes(make, tensors, millions):
    leaves = parameter_leaves(nnx.eval_shape(make))
    assert len(leaves) == tensors
    assert round(sum(leaf.size for leaf in leaves.values()) / 1e6, 3) == millions
    names = {torch_key(path) for path in leaves}
    of = "body" if tensors == 110 else "id_embedding_mapping"
    assert {f"{of}.{i}.{leaf}" for i in (0, 1, 3, 4, 6) for leaf in ("weight", "bias")} <= names
