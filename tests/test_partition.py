"""What is trained and how fast: patterns, learning rates, clipping."""

import math

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs.base import get_config
from persongen_jax.partition import assign_groups, learning_rate, make_optimizer


@pytest.fixture
def config():
    config = get_config()
    config.lr_lora, config.warmup_steps, config.steps = 0.5, 4, 12
    return config


def test_every_pattern_has_to_match():
    paths = ["unet/to_q/lora/up", "unet/to_q/kernel", "id_encoder/bias"]
    assert assign_groups(paths, [("unet/.*/lora/up", "lora")]) == {paths[0]: "lora"}
    with pytest.raises(ValueError, match="match no parameter.*'unet/lora'.*id_encoder/bias"):
        assign_groups(paths, [("unet/.*/lora/up", "lora"), ("unet/lora", "lora")])
    with pytest.raises(ValueError, match="disjoint"):
        assign_groups(paths, [("unet/.*", "a"), (".*/kernel", "b")])


def test_a_group_needs_its_rate(config):
    with pytest.raises(ValueError, match="lr_nose"):
        make_optimizer(config, {"a": "nose"})


# Warm-up over 4 steps, then 8 steps: after two of them a quarter is gone.
AFTER_TWO = {"constant": 1.0, "cosine": 0.5 * (1 + math.cos(math.pi / 4)), "linear": 0.75}


@pytest.mark.parametrize("name", AFTER_TWO)
def test_learning_rates(name, config):
    config.lr_schedule = name
    rate = learning_rate(config, config.lr_lora)
    warm_up = [float(rate(step)) for step in range(5)]
    assert np.allclose(warm_up, [0.125, 0.25, 0.375, 0.5, 0.5])
    assert np.isclose(rate(6), 0.5 * AFTER_TWO[name])
    end = 0.5 if name == "constant" else 0.0
    assert np.isclose(rate(12), end, atol=1e-7) and np.isclose(rate(15), end, atol=1e-7)
    assert rate(11) > 0


def test_an_unknown_schedule_names_the_known_ones(config):
    config.lr_schedule = "step"
    with pytest.raises(ValueError, match="'step'.*cosine"):
        make_optimizer(config, {"a": "lora"})


def updates(config, gradients):
    params = {"a": jnp.zeros(3), "b": jnp.zeros(2)}
    tx = make_optimizer(config, {"a": "lora", "b": "fuse_module"})
    state, all_updates = tx.init(params), []
    for gradient in gradients:
        update, state = tx.update(gradient, state, params)
        all_updates.append(update)
    return all_updates


def test_clipping_shortens_the_gradient_of_all_groups_together(config):
    rng = np.random.default_rng(0)
    gradients = [
        {"a": jnp.asarray(rng.normal(size=3) * s), "b": jnp.asarray(rng.normal(size=2) * s)}
        for s in (0.1, 10.0, 3.0)
    ]
    norms = [float(optax.global_norm(g)) for g in gradients]
    assert norms[0] < 1 < min(norms[1:])
    short = [
        {k: v * min(1, 1 / norm) for k, v in g.items()}
        for g, norm in zip(gradients, norms, strict=True)
    ]
    wanted, unclipped = updates(config, short), updates(config, gradients)
    config.clip_norm = 1.0
    for found, want in zip(updates(config, gradients), wanted, strict=True):
        assert all(np.allclose(found[k], want[k], rtol=1e-5) for k in want)
    assert not np.allclose(unclipped[1]["a"], wanted[1]["a"], rtol=1e-2)
