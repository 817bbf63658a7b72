"""BoLID: groups of any size, its branches, what is refused, a run with every loss."""

import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from data_pipeline.examples.fields import Call, unflatten
from data_pipeline.examples.identity.bodies import Body
from persongen_jax import train
from persongen_jax.losses.base import Settings
from persongen_jax.losses.decoded import LOSSES, DecodedLosses
from persongen_jax.methods import get_method
from persongen_jax.methods.base import Parts
from persongen_jax.miniature.__main__ import ASSETS
from persongen_jax.models.branches import branch_names
from persongen_jax.models.encoders.group import AGGREGATES, Aggregate, GroupTokens
from persongen_jax.parallel.sharding import make_mesh, replicated
from persongen_jax.systems.diffusion import drop_conditions
from persongen_jax.systems.open import open_system
from persongen_jax.training.partition import assign_groups, leaf_paths
from persongen_jax.training.trained import load_trained
from tests.helpers.training_runs import changed

RECOGNISER = str(ASSETS / "face_net" / "model.safetensors")
KW = {"dtype": jnp.float32, "param_dtype": jnp.float32}


# ---- Groups --------------------------------------------------------------------------------------


def plain_aggregate(module, features, mask):
    """G of the features that are there, in float64."""
    out = []
    for own, there in zip(np.asarray(features, np.float64), np.asarray(mask), strict=True):
        group = own[there]
        if not len(group):
            out.append(np.zeros(own.shape[-1]))
        elif module.kind == "mean":
            out.append(group.mean(0))
        elif module.kind == "max":
            out.append(group.max(0))
        else:
            q, k, v = (
                group @ np.asarray(linear.kernel[...], np.float64)
                for linear in (module.to_q, module.to_k, module.to_v)
            )
            scores = q @ k.T / np.sqrt(q.shape[-1])
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            weights /= weights.sum(-1, keepdims=True)
            out.append((group + weights @ v).mean(0))
    return np.array(out)


@pytest.mark.parametrize("kind", AGGREGATES)
def test_an_aggregate_is_its_transcription(kind):
    rng = np.random.default_rng(0)
    module = Aggregate(kind, 6, **KW, rngs=nnx.Rngs(0))
    mask = np.array([[1, 1, 1, 1], [1, 0, 1, 0], [0, 0, 0, 1], [0, 0, 0, 0]], bool)
    features = rng.normal(size=(4, 4, 6)).astype(np.float32)
    ours = jax.jit(module)(features, mask)
    np.testing.assert_allclose(ours, plain_aggregate(module, features, mask), atol=1e-5)
    # Neither the order of a group nor what absent places hold matters.
    order = [2, 0, 3, 1]
    np.testing.assert_allclose(jax.jit(module)(features[:, order], mask[:, order]), ours, atol=1e-5)
    other = np.where(mask[..., None], features, 1e3).astype(np.float32)
    np.testing.assert_allclose(jax.jit(module)(other, mask), ours, atol=1e-4)


def test_joints_move_the_tokens_and_nobody_has_those_of_a_zero_feature():
    rng = np.random.default_rng(0)
    sizes = {"reduced": 6, "aggregate": "mean", "joints": True, "num_tokens": 4}
    module = GroupTokens(5, 8, **sizes, **KW, rngs=nnx.Rngs(0))
    embeds = rng.normal(size=(2, 4, 5)).astype(np.float32)
    joints = rng.normal(size=(2, 4, 12, 3)).astype(np.float32)
    mask = np.array([[1, 1, 0, 0], [0, 0, 0, 0]], bool)
    run = jax.jit(module)
    tokens, other = run(embeds, mask, joints), run(embeds, mask, 2 * joints)
    assert tokens.shape == (2, 4, 8) and np.allclose(np.mean(tokens, -1), 0, atol=1e-5)
    assert np.abs(other[0] - tokens[0]).max() > 0.05 and np.array_equal(other[1], tokens[1])
    bias = np.asarray(module.uplift.bias[...]).reshape(4, 8)
    wanted = (bias - bias.mean(-1, keepdims=True)) / np.sqrt(bias.var(-1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(tokens[1], wanted, atol=1e-5)


# ---- The method ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def system(config):
    """With the miniature's own recogniser."""
    settings = {"method": "bolid", "bolid_reduced": 8, "face_encoder": RECOGNISER}
    return open_system(changed(config, **settings))


def make_batch(system, references=2, people=1, keypoints=True):
    """Each image's people with as many references, of which the joints are known.

    Features take the place of what the frozen networks encode, as with a cache.
    """
    faces = np.random.default_rng(0).integers(0, 256, (people, references, 32, 32, 3), np.uint8)
    joints = np.random.default_rng(1).random((people, references, 12, 2)) * 32
    own = [
        [Body(image, joint if keypoints else None) for image, joint in zip(*both, strict=True)]
        for both in zip(faces, joints, strict=True)
    ]
    time_ids = np.array([[64, 64, 0, 0, 64, 64]] * 2, np.float32)
    references = [[list(images) for images in faces]] * 2
    call = Call(["a woman"] * 2, {}, references, time_ids, (64, 64), {"bodies": [own] * 2})
    batch: dict = {}
    for field in system.fields:
        batch |= field.given(call)
    model = system.model
    for name, width in (
        ("id", model.face_encoder.config["embedding_dim"]),
        ("body", model.image_encoder.config["hidden_size"]),
    ):
        pixels = batch.pop(f"{name}_pixel_values")
        batch[f"{name}_features"] = pixels[:, :, :8].reshape(*pixels.shape[:2], -1)[..., :width]
    del batch["input_ids/text"]
    text = model.unet.config["cross_attention_dim"][-1]
    for name, shape in (("text", (2, 7, text)), ("empty", (2, 7, text)), ("pooled", (2, 32))):
        batch[f"text_states/{name}"] = np.zeros(shape, np.float32)
    batch["text_states/empty_pooled"] = batch["text_states/pooled"]
    return jax.tree.map(jnp.asarray, unflatten(batch))


@functools.partial(jax.jit, static_argnums=(0, 1))
def conditioned(system, graphdef, state, batch):
    return system.condition(nnx.merge(graphdef, state), batch)


def streams(system, batch):
    return conditioned(system, *nnx.split(system.model.conditioner()), batch).streams


def test_what_it_has_trains_and_reads(system):
    assert branch_names(system.model.unet) == ["body", "face"]
    groups = assign_groups(leaf_paths(system.model), system.table)
    assert set(groups.values()) == {"projections", "identity"}
    assert {"references", "bodies"} <= {field.name for field in system.fields}
    found = streams(system, make_batch(system))
    assert set(found) == {"text", "face", "body"}
    for name in ("face", "body"):
        assert found[name].tokens.shape[:2] == (2, 4) and found[name].mask.all()


def test_a_group_of_another_size_needs_no_other_program(system):
    found = [streams(system, make_batch(system, references=n)) for n in (1, 2, 4)]
    before = conditioned._cache_size()
    again = streams(system, make_batch(system, references=3))
    assert conditioned._cache_size() == before
    for other in found:
        assert np.abs(other["body"].tokens - again["body"].tokens).max() > 1e-3


def test_two_people_have_tokens_of_their_own(system):
    both = streams(system, make_batch(system, people=2))
    assert both["face"].tokens.shape[:2] == both["body"].tokens.shape[:2] == (2, 8)
    alone = streams(system, make_batch(system, people=1))
    for name in ("face", "body"):  # the first person of both has the same images
        first, second = np.split(np.asarray(both[name].tokens), 2, axis=1)
        assert np.allclose(first, alone[name].tokens, atol=1e-5)
        assert np.abs(first - second).max() > 1e-3


def test_a_dropped_condition_and_hidden_joints_are_defined(system):
    batch = make_batch(system)
    dropped = streams(system, drop_conditions(system.fields, batch, np.array([True, False])))
    own = streams(system, batch)
    for name, projection in (("face", system.model.face_proj), ("body", system.model.body_proj)):
        bias = np.asarray(projection.uplift.bias[...]).reshape(4, -1)  # what is left of nothing
        spread = np.sqrt(bias.var(-1, keepdims=True) + 1e-5)
        nothing = (bias - bias.mean(-1, keepdims=True)) / spread
        assert np.allclose(dropped[name].tokens[0], nothing, atol=1e-5)
        assert np.allclose(dropped[name].tokens[1], own[name].tokens[1], atol=1e-5)
    hidden = streams(system, make_batch(system, keypoints=False))
    assert np.isfinite(hidden["body"].tokens).all()
    assert np.abs(hidden["body"].tokens - own["body"].tokens).max() > 1e-3


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"bolid_aggregate": "median"}, "bolid_aggregate='median': give mean, max, attention"),
        ({"face_encoder": ""}, "face_encoder is empty"),
    ],
)
def test_bad_settings_are_named(changes, named, config):
    settings = changed(config, method="bolid", **{"face_encoder": RECOGNISER, **changes})
    with pytest.raises(ValueError, match=named):
        get_method("bolid").attach(Parts(None, None), settings, nnx.Rngs(0))


def test_configs_of_both_sizes_ask_for_losses_that_there_are():
    for module in ("configs.bolid", "configs.mini.bolid"):
        made = importlib.import_module(module).get_config()
        assert made.method == "bolid" and set(made.losses) == {"keypoints", "clip"}
        assert set(made.losses) <= set(LOSSES)
        for own in made.losses.values():  # each is a flag of the command line
            assert set(own) == set(Settings._fields)
    open_losses = DecodedLosses(made, open_schedule())
    assert open_losses.losses["clip"].net == str(ASSETS / "clip")


def open_schedule():
    from persongen_jax.diffusion.schedule import NoiseSchedule
    from persongen_jax.weights.random_base import SCHEDULER

    return NoiseSchedule.from_config(SCHEDULER)


# ---- Runs ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_steps_move_everything_and_resume(config, tmp_path):
    """With and without the body; its losses are in a run of tests/losses/test_in_a_run.py."""
    settings = changed(
        config,
        **{"method": "bolid", "bolid_reduced": 8, "face_encoder": RECOGNISER, "drop_prob": 0.0},
        **{"data": "people:in_train?identities=4&pictures=3&framing=figures", "cpu_devices": 1},
        **{"steps": 2, "warmup_steps": 0, "checkpoint_every": 1, "log_every": 1},
    )
    assert train.train(settings, tmp_path / "whole")
    trained, _ = load_trained(tmp_path / "whole", replicated(make_mesh()))
    first = leaf_paths(open_system(settings).model)
    assert {path.split("/")[0] for path in trained} == {"face_proj", "body_proj", "unet"}
    assert not [p for p, array in trained.items() if np.array_equal(first[p].get_value(), array)]
    assert train.train(changed(settings, steps=1), tmp_path / "resumed")
    assert train.train(settings, tmp_path / "resumed")
    resumed, _ = load_trained(tmp_path / "resumed", replicated(make_mesh()))
    assert all(np.array_equal(resumed[path], array) for path, array in trained.items())
    alone = open_system(changed(settings, bolid_body=False))
    assert branch_names(alone.model.unet) == ["face"] and not hasattr(alone.model, "image_encoder")
