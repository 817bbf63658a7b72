"""A system whose layers gather statistics: a step updates them, a checkpoint keeps them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from data_pipeline.examples.batches import Arrays
from persongen_jax import train
from persongen_jax.models.faces.iresnet import MOMENTUM, BatchNorm
from persongen_jax.parallel.sharding import make_mesh, put_batch
from persongen_jax.systems.assembly import assemble
from persongen_jax.systems.base import System
from persongen_jax.systems.open import open_run, open_system

ROWS, WIDTH = 12, 3


class Net(nnx.Module):
    def __init__(self):
        kw = {"dtype": jnp.float32, "param_dtype": jnp.float32, "rngs": nnx.Rngs(0)}
        self.norm = BatchNorm(WIDTH, **kw)


class Normalised(System):
    """Batch normalisation fitted to targets."""

    statistics = True
    groups = ((r"norm/(scale|bias)", "norm"),)

    def __init__(self, config):
        self.config, self.model = config, Net()

    @classmethod
    def defaults(cls):
        config = super().defaults()
        config.system, config.lr_norm = f"{__name__}:Normalised", 0.1
        config.batch_size, config.log_every, config.checkpoint_every = 4, 1, 2
        return config

    def source(self):
        rng = np.random.default_rng(0)
        x, y = rng.normal(2, 3, (2, ROWS, WIDTH)).astype(np.float32)
        return Arrays({"x": x, "y": y}, seed=self.config.seed)

    def losses(self, model, batch, draws):
        error = model.norm(batch["x"], use_running_average=False) - batch["y"]
        return {"loss": jnp.square(error).mean(axis=-1)}


def mean_of(x):
    return x.mean(axis=0)


def variance_of(x):
    return x.var(axis=0, ddof=1)


STATS = ("norm/running_mean", "norm/running_var")


def run(workdir, steps):
    config = Normalised.defaults()
    config.steps = steps
    assert train.train(config, workdir)
    return open_run(workdir).system.model.norm


@pytest.mark.parametrize("parts", [1, 2])
def test_a_step_moves_the_running_statistics(parts):
    config = Normalised.defaults()
    config.grad_accum = parts
    made = assemble(open_system(config), make_mesh())
    batch = next(made.system.examples(0))
    before = jax.tree.map(np.asarray, made.state.stats)
    assert before.keys() == set(STATS)
    state, _ = made.step(made.state, made.frozen, put_batch(made.mesh, batch), np.int32(0))
    # One part after the other: each part's statistics count the same. Part i has every second row.
    pieces = [batch["x"][i::parts] for i in range(parts)]
    means, variances = (np.mean([f(x) for x in pieces], axis=0) for f in (mean_of, variance_of))
    for name, of_batch in zip(STATS, (means, variances), strict=True):
        wanted = (1 - MOMENTUM) * before[name] + MOMENTUM * of_batch
        assert np.allclose(state.stats[name], wanted, rtol=1e-5)
        assert np.array_equal(state.eval_params[name], state.stats[name])
    # A step that is not finite changes nothing.
    after = jax.tree.map(np.asarray, state.stats)
    bad = put_batch(made.mesh, {**batch, "x": batch["x"] * np.nan})
    state, metrics = made.step(state, made.frozen, bad, np.int32(1))
    assert metrics["skipped"] == 1
    assert jax.tree.all(jax.tree.map(np.array_equal, state.stats, after))
    shown = made.eval_model(state).norm
    assert np.array_equal(shown.running_mean[...], after["norm/running_mean"])


def test_a_run_goes_on_with_its_statistics(tmp_path):
    whole = run(tmp_path / "whole", 4)
    run(tmp_path / "cut", 2)
    resumed = run(tmp_path / "cut", 4)
    for name in ("scale", "bias", "running_mean", "running_var"):
        assert np.array_equal(getattr(whole, name)[...], getattr(resumed, name)[...]), name
    assert np.abs(whole.running_mean[...]).min() > 0.1
