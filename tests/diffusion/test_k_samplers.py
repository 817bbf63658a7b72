"""k-diffusion's samplers against the numbers of PuLID v1.1's own copies of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from persongen_jax.diffusion.plan import make_plan
from persongen_jax.diffusion.samplers import (
    SAMPLERS,
    final_latents,
    init_carry,
    initial_latents,
    run_steps,
)
from tests.helpers.published_goldens import golden, relative_gap

CONFIG = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
NAME = "pulid_v11_pipeline"


def arrays():
    return golden(NAME)[1]


@pytest.mark.parametrize("steps", [5, 25])
def test_sigmas_and_timesteps(steps):
    plan = make_plan(CONFIG, steps, "k_dpmpp_2m")
    assert relative_gap(plan.sigmas, arrays()[f"out/sigmas_{steps}"]) < 1e-6
    if steps == 25:
        assert np.array_equal(plan.timesteps, arrays()["out/timesteps_25"])
    logs = np.log([plan.sigmas[-2], plan.sigmas[0]])
    assert relative_gap(logs, arrays()["out/log_sigmas_first_last"]) < 1e-6


@pytest.mark.parametrize(
    ("run", "scheduler", "steps"), [("main_2m", "k_dpmpp_2m", 5), ("main_sde", "k_dpmpp_sde", 4)]
)
def test_every_step_on_the_originals_predictions(run, scheduler, steps):
    """The denoised latents are given, so that the model is left out."""
    known = arrays()
    plan = make_plan(CONFIG, steps, scheduler)
    calls = known[f"out/{run}_unet_timesteps"][::2]
    assert np.array_equal(plan.timesteps, calls)
    if scheduler == "k_dpmpp_sde":
        assert plan.num_steps == 2 * steps - 1 and plan.stochastic
        return
    first = known[f"out/{run}_x_per_step"][0]
    carry = init_carry(plan, first)
    for i in range(plan.num_steps):
        x, denoised = known[f"out/{run}_x_per_step"][i], known[f"out/{run}_denoised_per_step"][i]
        assert relative_gap(carry["latents"], x) < 1e-5
        eps = (x - denoised) / plan.sigmas[i]
        latents, memory = SAMPLERS[scheduler](
            jnp.asarray(eps), plan, i, carry["latents"], carry["memory"], None
        )
        carry = {"latents": latents, "memory": memory}
    assert relative_gap(final_latents(carry), known[f"out/{run}_final_latents"]) < 1e-5


def test_both_find_a_gaussian():
    """The best prediction for data of variance 1/4 samples that variance."""

    def model(x, t, i):
        alpha, sigma = plan.at(i)["alpha_t"], plan.at(i)["sigma_t"]
        return x * sigma / (alpha**2 / 4 + sigma**2)

    noise = np.random.default_rng(0).normal(size=(4, 32, 32, 4)).astype(np.float32)
    for scheduler in ("k_dpmpp_2m", "k_dpmpp_sde"):
        plan = make_plan(CONFIG, 20, scheduler)
        carry = init_carry(plan, initial_latents(plan, noise))
        assert np.allclose(carry["latents"], noise * plan.sigmas[0])
        carry = run_steps(plan, model, carry, jax.random.key(0), 0, plan.num_steps)
        assert abs(float(final_latents(carry).std()) - 0.5) < 0.02, scheduler


def test_the_two_draws_of_a_step_belong_to_one_brownian_motion():
    plan = make_plan(CONFIG, 3, "k_dpmpp_sde")
    start, middle, after = plan.sigmas[0], plan.sigmas[1], plan.sigmas[2]
    assert np.allclose(middle**2, start * after, rtol=1e-5)
    weights = plan.coefficients["overlap"]
    assert weights[0] == weights[2] == 0 == weights[4]
    assert np.isclose(weights[1], np.sqrt((start - middle) / (start - after)), rtol=1e-4)
    steps = plan.num_steps
    first = init_carry(plan, np.zeros((1, 64, 64, 1), np.float32))
    drawn = []
    for calls in (1, 2):  # a prediction that the data are 0 leaves each call's noise alone
        carry = run_steps(
            plan, lambda x, t, i: x / plan.at(i)["sigma_t"], first, jax.random.key(0), 0, calls
        )
        drawn.append(np.asarray(final_latents(carry)).ravel())
    assert steps == 5 and abs(np.corrcoef(*drawn)[0, 1] - weights[1]) < 0.05
