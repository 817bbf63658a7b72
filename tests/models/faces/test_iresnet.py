"""Our IResNet against PyTorch's: stage by stage, whole, in training, and its full sizes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from persongen_jax.models.faces.iresnet import (
    R50,
    R100,
    BatchNorm,
    IResNet,
    final_side,
    normalise_faces,
)
from persongen_jax.models.layers import UnusedRngs
from persongen_jax.weights.files.source import DictSource
from persongen_jax.weights.formats.arcface import COUNTER
from persongen_jax.weights.loader import (
    load_module,
    parameter_leaves,
    to_torch_shape,
    torch_key,
)
from tests.helpers.iresnet_twin import TorchIResNet, randomise_statistics
from tests.helpers.twins import nhwc, randomise, relative_error

# Relative error of float32 against float32, and of bfloat16 against float32.
TOLERANCE = 1e-5
BF16_TOLERANCE = 3e-2

TINY = {"layers": (2, 1), "widths": (8, 12), "input_size": 12, "embedding_dim": 10}
NARROW_R50 = {**R50, "widths": (8, 8, 12, 16), "input_size": 48, "embedding_dim": 24}
# The miniature's crops: 40 -> 20 -> 10 -> 5 -> 3, with an odd side in between.
ODD = {"layers": (1, 1, 1, 1), "widths": (16, 32, 48, 64), "input_size": 40, "embedding_dim": 32}
CONFIGS = {"tiny": TINY, "r50": NARROW_R50, "odd": ODD}


def state_dict(model):
    items = model.state_dict().items()
    return {key: value.numpy() for key, value in items if not key.endswith(COUNTER)}


def make_twins(config, **dtypes):
    theirs = randomise_statistics(randomise(TorchIResNet(**config)))
    ours = load_module(
        lambda: IResNet(config, **dtypes, rngs=UnusedRngs()), DictSource(state_dict(theirs))
    )
    return theirs, ours


def make_images(config, count=2):
    size = config["input_size"]
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(2)) * 2 - 1


@pytest.mark.parametrize("name", CONFIGS)
def test_stage_by_stage_and_whole(name):
    theirs, ours = make_twins(CONFIGS[name])
    images = make_images(CONFIGS[name])
    with torch.no_grad():
        expected = [*map(nhwc, theirs.hidden_states(images)), theirs(images).numpy()]
    got = jax.jit(lambda x: (*ours.hidden_states(x), ours(x)))(nhwc(images))
    errors = [relative_error(a, b) for a, b in zip(got, expected, strict=True)]
    assert max(errors) < TOLERANCE, errors


def test_every_weight_and_statistic_matters():
    """A tensor that the forward pass omits would pass any comparison of the others."""
    _, ours = make_twins(TINY)
    images = nhwc(make_images(TINY))
    graphdef, state = nnx.split(ours)

    def total(state):
        return jnp.square(nnx.merge(graphdef, state)(images)).sum()

    gradients = nnx.to_flat_state(jax.jit(jax.grad(total))(state))
    assert len(gradients) == len(parameter_leaves(ours))
    unused = [path for path, leaf in gradients if not (leaf.get_value() != 0).any()]
    assert not unused


@pytest.mark.parametrize("param_dtype", [jnp.float32, jnp.bfloat16])
def test_bfloat16(param_dtype):
    theirs, ours = make_twins(TINY, dtype=jnp.bfloat16, param_dtype=param_dtype)
    images = make_images(TINY)
    assert ours.conv1.kernel.get_value().dtype == param_dtype
    assert ours.bn1.running_var.get_value().dtype == jnp.float32
    with torch.no_grad():
        expected = theirs(images).numpy()
    got = jax.jit(lambda x: ours(x))(nhwc(images))
    assert got.dtype == jnp.float32
    assert relative_error(got, expected) < BF16_TOLERANCE


def test_training_under_jit_as_pytorch_does():
    """Embeddings, gradients and running statistics of two steps in train mode."""
    theirs, ours = make_twins(TINY)
    theirs.train()
    graphdef, params, stats = nnx.split(ours, nnx.Param, nnx.BatchStat)

    @jax.jit
    def step(params, stats, images):
        def loss(params):
            model = nnx.merge(graphdef, params, stats, copy=True)
            embeddings = model(images, use_running_average=False)
            total = (embeddings * jnp.arange(embeddings.size).reshape(embeddings.shape)).mean()
            return total, (embeddings, nnx.state(model, nnx.BatchStat))

        (_, aux), gradients = jax.value_and_grad(loss, has_aux=True)(params)
        return gradients, *aux

    images = make_images(TINY, 6)
    for batch in (images[:3], images[3:]):
        gradients, embeddings, stats = step(params, stats, nhwc(batch))
        theirs.zero_grad()
        expected = theirs(batch)
        (expected * torch.arange(expected.numel()).reshape(expected.shape)).mean().backward()
        assert relative_error(embeddings, expected.detach().numpy()) < 10 * TOLERANCE

    wanted = state_dict(theirs)
    moved = {torch_key(path): leaf.get_value() for path, leaf in nnx.to_flat_state(stats)}
    assert len(moved) == sum(".running_" in key for key in wanted)
    errors = {key: relative_error(value, wanted[key]) for key, value in moved.items()}
    assert max(errors.values()) < TOLERANCE, errors
    slopes = gradients["layer1"][1]["prelu"]["scale"].get_value()
    expected = theirs.layer1[1].prelu.weight.grad.numpy()
    assert relative_error(slopes, expected) < 100 * TOLERANCE


def test_running_statistics_move_only_in_training():
    norm = BatchNorm(4, dtype=jnp.float32, param_dtype=jnp.float32, rngs=UnusedRngs())
    x = np.random.default_rng(0).normal(3, 2, (5, 4)).astype(np.float32)
    np.testing.assert_allclose(norm(x), x / np.sqrt(1 + 1e-5), rtol=1e-6)
    np.testing.assert_array_equal(norm.running_mean[...], 0)
    trained = norm(x, use_running_average=False)
    np.testing.assert_allclose(trained.mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(norm.running_mean[...], 0.1 * x.mean(0), rtol=1e-5)
    np.testing.assert_allclose(norm.running_var[...], 0.9 + 0.1 * x.var(0, ddof=1), rtol=1e-5)
    with pytest.raises(ValueError, match="single value"):
        norm(x[:1], use_running_average=False)


# arcface_torch's figures, weights without the running statistics.
@pytest.mark.parametrize(("config", "millions"), [(R50, 43.59), (R100, 65.16)])
def test_full_size_keys_and_shapes(config, millions):
    ours = nnx.eval_shape(lambda: IResNet(config, rngs=UnusedRngs()))
    with torch.device("meta"):
        theirs = TorchIResNet(**config)
    shapes = {key: tuple(t.shape) for key, t in theirs.state_dict().items() if COUNTER not in key}
    leaves = parameter_leaves(ours)
    assert {torch_key(p): to_torch_shape(p, leaf.shape) for p, leaf in leaves.items()} == shapes
    trained = [leaf for _, leaf in nnx.to_flat_state(nnx.state(ours, nnx.Param))]
    count = sum(leaf.get_value().size for leaf in trained)
    assert count == sum(parameter.numel() for parameter in theirs.parameters())
    assert round(count / 1e6, 2) == millions
    assert ours.fc.kernel.get_value().shape == (25088, 512)


def test_fc_counts_channels_first():
    """The kernel that a channels-last flatten would need gives the same embedding."""
    _, ours = make_twins(TINY)
    images = nhwc(make_images(TINY))
    side, width, dim = final_side(TINY), TINY["widths"][-1], TINY["embedding_dim"]
    weight = np.array(ours.fc.kernel[...]).T
    kernel = weight.reshape(dim, width, side, side).transpose(2, 3, 1, 0).reshape(-1, dim)
    x = np.array(ours.bn2(ours.hidden_states(images)[-1]))
    embedding = ours.features(x.reshape(len(x), -1) @ kernel + np.array(ours.fc.bias[...]))
    assert relative_error(ours(images), embedding) < TOLERANCE


def test_pixels_to_the_networks_range():
    crops = np.array([0, 127, 128, 255], np.uint8).reshape(1, 2, 2, 1)
    got = normalise_faces(crops)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(np.ravel(got), [-1, -0.5 / 127.5, 0.5 / 127.5, 1], atol=1e-7)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"width": (8,)}, "width"),
        ({"layers": (1,)}, "one entry for each stage"),
        ({"layers": (1, 0)}, "layers"),
        ({"input_size": 0}, "input_size"),
    ],
)
def test_unsupported_config_is_named(change, named):
    with pytest.raises(ValueError, match=named):
        IResNet({**TINY, **change}, rngs=UnusedRngs())


def test_images_of_another_size_are_refused():
    model = nnx.eval_shape(lambda: IResNet(TINY, rngs=UnusedRngs()))
    with pytest.raises(ValueError, match="input_size=12"):
        model(jnp.zeros((1, 24, 24, 3)))
