"""Optimizers by name: they learn, by group, resume exactly, are sharded; learning rates."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl import flags
from ml_collections import config_flags

from configs.base import get_config
from persongen_jax.parallel.sharding import make_mesh, replicated, state_shardings
from persongen_jax.training import optimizer
from persongen_jax.training.checkpoint import Checkpoints
from persongen_jax.training.optimizer import (
    ema_decay_at,
    eval_params,
    learning_rate,
    make_optimizer,
)
from persongen_jax.training.step import TrainState
from persongen_jax.training.trained import load_trained

# Ten times the other's rate, from the same weights to the same target.
FAST, SLOW = "unet/to_q/kernel", "unet/to_k/kernel"
SHAPES = {
    FAST: (8, 16),
    SLOW: (8, 16),
    "unet/conv/kernel": (3, 3, 4, 8),
    "unet/conv/lora/down": (3, 3, 4, 2),
    "unet/conv/lora/up": (2, 8),
    "unet/norm/scale": (8,),
    "id_encoder/latents": (1, 4, 8),
}
GROUPS = {path: "lora" if "lora" in path or path == FAST else "projections" for path in SHAPES}
OPTIONS = {
    "adamw": {"weight_decay": 0.01},
    "adafactor": {"min_dim_size_to_factor": 4},
    "lion": {},
    "prodigy": {"estim_lr0": 0.01, "betas": [0.9, 0.99]},
    "schedule_free_adamw": {},
    "muon": {"adam_ratio": 2.0, "consistent_rms": 0.2},
    "sgd": {"momentum": 0.9},
}


def config_of(name="adam", **options):
    config = get_config()
    config.optimizer, config.optimizer_options = name, options
    config.lr_lora, config.lr_projections, config.warmup_steps, config.steps = 0.1, 0.01, 4, 12
    return config


def weights(seed=0):
    rng = np.random.default_rng(seed)
    drawn = {path: rng.normal(size=shape).astype(np.float32) for path, shape in SHAPES.items()}
    return {**jax.tree.map(jnp.asarray, drawn), SLOW: jnp.asarray(drawn[FAST])}


@jax.jit
def loss(params):
    """0 at twos, which no weight starts from."""
    return sum(((array - 2) ** 2).sum() for array in params.values())


def steps_of(config):
    """(initial state, its shardings, step(state) to the next), compiled as in training."""
    tx = make_optimizer(config, GROUPS)
    create = functools.partial(TrainState.create, tx=tx, ema_decay=0.0)
    places = state_shardings(make_mesh(), config, jax.eval_shape(create, weights()))
    state = jax.jit(create, out_shardings=places)(weights())

    @functools.partial(jax.jit, donate_argnums=0, out_shardings=places)
    def step(state):
        gradients = jax.grad(loss)(state.trainable)
        updates, opt_state = tx.update(gradients, state.opt_state, state.trainable)
        return TrainState(optax.apply_updates(state.trainable, updates), opt_state, {})

    return state, places, step


@pytest.fixture(scope="module", params=OPTIONS)
def run(request):
    """(the step, the states after 0 to 10 steps on the host)."""
    state, _, step = steps_of(config_of(request.param, **OPTIONS[request.param]))
    states = [jax.tree.map(np.array, state)]
    for _ in range(10):
        state = step(state)
        states.append(jax.tree.map(np.array, state))
    return step, states


def identical(a, b):
    return jax.tree.structure(a) == jax.tree.structure(b) and jax.tree.all(
        jax.tree.map(lambda x, y: x.dtype == y.dtype and np.array_equal(x, y), a, b)
    )


# ---- Each of them ------------------------------------------------------------------------------


def test_ten_steps_learn(run):
    _, states = run
    losses = [float(loss(eval_params(s.opt_state, s.trainable))) for s in states]
    assert losses[10] < losses[5] < losses[0]
    moved = jax.tree.map(lambda a, b: np.any(a != b), states[0].trainable, states[10].trainable)
    assert all(moved.values())


def test_every_group_has_its_rate(run):
    _, states = run
    fast, slow = (states[1].trainable[p] - states[0].trainable[p] for p in (FAST, SLOW))
    assert np.abs(slow).max() > 0 and np.allclose(fast, 10 * slow, rtol=1e-2, atol=1e-4)


def test_a_saved_run_goes_on_exactly(run, tmp_path):
    step, states = run
    settings = {}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(5, states[5].trainable, states[5].opt_state, settings)
    on_device = jax.device_put(states[0], replicated(make_mesh()))
    with Checkpoints(tmp_path) as checkpoints:
        saved = checkpoints.restore(5, on_device.trainable, on_device.opt_state)
    state = TrainState(*saved[:2], {})
    assert identical(state, states[5])
    for _ in range(5):
        state = step(state)
    assert identical(jax.tree.map(np.array, state), states[10])


# ---- All of them -------------------------------------------------------------------------------


def test_whatever_can_be_named_can_train():
    """Its state has a sharding for every array, and keeps its shapes and dtypes between steps."""
    names = optimizer.known_optimizers()
    assert OPTIONS.keys() | {"adam", "lamb", "dadapt_adamw", "schedule_free_sgd"} <= names.keys()
    for name in names:
        config = config_of(name)
        tx = make_optimizer(config, GROUPS)
        create = functools.partial(TrainState.create, tx=tx, ema_decay=0.0)
        state = jax.eval_shape(create, weights())
        state_shardings(make_mesh(), config, state)
        updates, after = jax.eval_shape(tx.update, state.trainable, state.opt_state, weights())
        for a, b in ((state.opt_state, after), (state.trainable, updates)):
            kinds = [jax.tree.map(lambda x: (x.shape, x.dtype), tree) for tree in (a, b)]
            assert kinds[0] == kinds[1], name


def test_the_default_is_adam_bit_for_bit():
    config = config_of()
    adam = {
        group: optax.adam(learning_rate(config, config[f"lr_{group}"]), 0.9, 0.999)
        for group in ("lora", "projections")
    }
    results = []
    for tx in (make_optimizer(config, GROUPS), optax.partition(adam, GROUPS)):
        params, update = weights(), jax.jit(tx.update)
        state = tx.init(params)
        for seed in range(1, 4):
            updates, state = update(weights(seed), state, params)
            params = optax.apply_updates(params, updates)
        results.append(jax.tree.map(np.array, (params, state)))
    assert identical(*results)


def test_the_state_has_memory_of_its_own():
    params = weights()
    tx = make_optimizer(config_of("prodigy"), GROUPS)
    state = TrainState.create(params, tx, 0.0)
    jax.jit(lambda state: jax.tree.map(lambda x: x + 1, state), donate_argnums=0)(state)
    assert not any(array.is_deleted() for array in params.values())


@pytest.mark.parametrize("name", ["prodigy", "dadapt_adamw"])
def test_steps_before_the_first_gradient_change_nothing(name):
    """Without a gradient the estimated distance is 0 / 0."""
    params = weights()
    tx = make_optimizer(config_of(name), GROUPS)
    update, start = jax.jit(tx.update), tx.init(params)
    nothing = jax.tree.map(jnp.zeros_like, params)
    updates, state = update(nothing, start, params)
    assert identical(state, start) and identical(updates, nothing)
    updates, state = update(weights(1), state, params)
    assert all(np.isfinite(u).all() and np.any(u) for u in updates.values())


# ---- Muon --------------------------------------------------------------------------------------


def test_muon_moves_kernels_as_matrices_and_the_rest_by_adam():
    config = config_of("muon", adam_ratio=3.0)
    params, gradients = weights(), weights(1)
    tx = make_optimizer(config, GROUPS)
    updates, _ = tx.update(gradients, tx.init(params), params)
    adam = optax.adam(3.0 * 0.01 / 4, nesterov=True)  # the first of four steps of warm-up
    wanted, _ = adam.update(gradients, adam.init(params), params)
    for path, shape in SHAPES.items():
        if path in ("unet/norm/scale", "id_encoder/latents"):
            assert np.allclose(updates[path], wanted[path], rtol=1e-4)
            continue
        # Newton-Schulz brings the singular values near 1, and keeps the singular vectors.
        rate = config[f"lr_{GROUPS[path]}"] / 4
        matrix = np.asarray(updates[path]).reshape(-1, shape[-1]) / -rate
        matrix /= math.sqrt(max(1, shape[-1] / math.prod(shape[:-1])))
        assert 0.5 < np.linalg.svd(matrix)[1].min() and np.linalg.svd(matrix)[1].max() < 1.5
        u, _, v = np.linalg.svd(np.asarray(gradients[path]).reshape(matrix.shape), False)
        inner = u.T @ matrix @ v.T
        assert np.allclose(inner, np.diag(np.diag(inner)), atol=1e-3)


# ---- The weights to evaluate ---------------------------------------------------------------------


@pytest.mark.parametrize("clip_norm", [0.0, 5.0])
def test_schedule_free_shows_the_average(clip_norm):
    config = config_of("schedule-free", b1=0.8)
    config.clip_norm = clip_norm
    tx, params = make_optimizer(config, GROUPS), weights()
    state, z, total = tx.init(params), weights(), 0.0
    average = jax.tree.map(np.asarray, params)
    for step in range(4):
        updates, state = jax.jit(tx.update)(weights(step + 1), state, params)
        params = optax.apply_updates(params, updates)
        groups = (state[1] if clip_norm else state).inner_states
        z = {path: groups[group].inner_state.z[path] for path, group in GROUPS.items()}
        # x is the mean of all z so far, weighted by the squared rate.
        weight = min(1, (step + 2) / 4) ** 2
        total += weight
        average = {p: x + weight / total * (np.asarray(z[p]) - x) for p, x in average.items()}
    shown = eval_params(state, params)
    for path in SHAPES:
        assert np.allclose(shown[path], average[path], atol=1e-5)
        assert not np.allclose(shown[path], params[path], atol=1e-3)
        assert np.allclose(params[path], 0.8 * shown[path] + 0.2 * z[path], atol=1e-5)


def test_other_optimizers_show_what_they_train():
    for name in ("adam", "prodigy", "muon"):
        params = weights()
        assert eval_params(make_optimizer(config_of(name), GROUPS).init(params), params) is params


def test_what_is_shown_can_be_shipped_as_the_running_average(tmp_path):
    params = weights()
    state = make_optimizer(config_of("schedule_free_sgd"), GROUPS).init(params)
    shown = eval_params(state, weights(1))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(3, weights(1), state, {}, ema=shown)
    assert identical(load_trained(tmp_path, replicated(make_mesh()))[0], shown)
    with Checkpoints(tmp_path) as checkpoints:
        trainable, opt_state, ema, *_ = checkpoints.restore(3, params, state, {})
    assert identical(trainable, weights(1)) and identical(opt_state, state) and ema == {}


def test_the_running_average_forgets_faster_at_first():
    assert [ema_decay_at(0.99, False, step) for step in (0, 5)] == [0.99, 0.99]
    decays = jax.jit(jax.vmap(lambda step: ema_decay_at(0.99, True, step)))(jnp.arange(2000))
    assert np.allclose(decays[:3], [1 / 10, 2 / 11, 3 / 12])
    assert np.isclose(decays[889], 890 / 899) and np.allclose(decays[891:], 0.99)


# ---- Errors ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("adamx", {}, "'adamx' is unknown; use one of .*adafactor, .*muon, .*prodigy"),
        ("scale_by_adam", {}, "'scale_by_adam' is in optax but is not an optimizer; use one of"),
        ("cosine_decay_schedule", {}, "is not an optimizer"),
        ("lbfgs", {}, "'lbfgs' cannot be used here, because it evaluates the loss several"),
        ("adam", {"beta1": 0.5}, "adam has no option 'beta1'; it takes b1, b2, eps"),
        ("muon", {"adam_learning_rate": 1}, "no option 'adam_learning_rate'; it takes adam_ratio"),
        ("adam", {"learning_rate": 1.0}, "set learning_rate by config.lr_<group>"),
        ("schedule_free_sgd", {"warmup_steps": 1}, "set warmup_steps by config.warmup_steps"),
        ("prodigy", {"betas": 0.9}, r"\{'betas': 0.9\} do not fit prodigy: "),
        ("adam", {"b1": "high"}, r"\{'b1': 'high'\} do not fit adam: "),
        ("sign-sgd", {"b1": 0.9}, "sign_sgd has no option 'b1'; it takes none"),
    ],
)
def test_an_optimizer_that_does_not_fit_is_refused(name, options, said):
    with pytest.raises(ValueError, match=said) as refused:
        make_optimizer(config_of(name, **options), GROUPS)
    assert "\n" not in str(refused.value)


def test_an_average_of_an_average_is_refused():
    config = config_of("schedule_free_sgd")
    config.ema_decay = 0.9
    with pytest.raises(ValueError, match="set config.ema_decay=0, not 0.9"):
        make_optimizer(config, GROUPS)


def test_a_group_needs_its_rate():
    with pytest.raises(ValueError, match="lr_nose"):
        make_optimizer(config_of(), {"a": "nose"})


def test_options_come_from_the_command_line():
    argv = ["train", "--config.optimizer=adamw", "--config.optimizer_options={'b1': 0.5}"]
    values = flags.FlagValues()
    config = config_flags.DEFINE_config_file(
        "config", "configs/base.py", flag_values=values, sys_argv=argv
    )
    values(argv)
    config = config.value
    config.lr_lora, config.warmup_steps = 1.0, 0
    params, gradient = {"a": jnp.ones(2)}, {"a": jnp.ones(2)}
    state = make_optimizer(config, {"a": "lora"}).init(params)
    _, state = make_optimizer(config, {"a": "lora"}).update(gradient, state, params)
    moments = optax.tree.get(state, "mu")
    assert np.allclose(moments["a"], 0.5)


# ---- Learning rates and clipping ---------------------------------------------------------------

# Warm-up over 4 steps, then 8 steps: after two of them a quarter is gone.
AFTER_TWO = {"constant": 1.0, "cosine": 0.5 * (1 + math.cos(math.pi / 4)), "linear": 0.75}


@pytest.mark.parametrize("name", AFTER_TWO)
def test_learning_rates(name):
    config = config_of()
    config.lr_schedule = name
    rate = learning_rate(config, 0.5)
    warm_up = [float(rate(step)) for step in range(5)]
    assert np.allclose(warm_up, [0.125, 0.25, 0.375, 0.5, 0.5])
    assert np.isclose(rate(6), 0.5 * AFTER_TWO[name])
    end = 0.5 if name == "constant" else 0.0
    assert np.isclose(rate(12), end, atol=1e-7) and np.isclose(rate(15), end, atol=1e-7)
    assert rate(11) > 0


def test_an_unknown_schedule_names_the_known_ones():
    config = config_of()
    config.lr_schedule = "step"
    with pytest.raises(ValueError, match="'step'.*cosine"):
        make_optimizer(config, {"a": "lora"})


def updates_of(config, gradients):
    params = {"a": jnp.zeros(3), "b": jnp.zeros(2)}
    tx = make_optimizer(config, {"a": "lora", "b": "fuse_module"})
    state, all_updates = tx.init(params), []
    for gradient in gradients:
        update, state = tx.update(gradient, state, params)
        all_updates.append(update)
    return all_updates


def test_clipping_shortens_the_gradient_of_all_groups_together():
    config = config_of()
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
    wanted, unclipped = updates_of(config, short), updates_of(config, gradients)
    config.clip_norm = 1.0
    for found, want in zip(updates_of(config, gradients), wanted, strict=True):
        assert all(np.allclose(found[k], want[k], rtol=1e-5) for k in want)
    assert not np.allclose(unclipped[1]["a"], wanted[1]["a"], rtol=1e-2)
