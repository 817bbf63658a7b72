"""DDIM in reverse: equal to diffusers' DDIMInverseScheduler, and it leads back to the image."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import DDIMInverseScheduler

from persongen_jax.diffusion.inversion import make_inverse_plan
from persongen_jax.diffusion.plan import make_plan
from persongen_jax.diffusion.samplers import final_latents, init_carry, initial_latents, run_steps
from persongen_jax.diffusion.schedule import NoiseSchedule, signal_and_noise

CONFIG = {
    "_class_name": "DDIMScheduler",
    "beta_schedule": "squaredcos_cap_v2",
    "timestep_spacing": "trailing",
}


def run(plan, model, start):
    carry = init_carry(plan, initial_latents(plan, jnp.asarray(start)))
    return np.asarray(final_latents(run_steps(plan, model, carry, None, 0, plan.num_steps)))


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("steps", [7, 50])
def test_equal_to_diffusers(spacing, prediction, steps):
    """Within 1e-4 of the largest value, float32."""
    config = {**CONFIG, "timestep_spacing": spacing, "prediction_type": prediction}
    theirs = DDIMInverseScheduler(
        beta_schedule="squaredcos_cap_v2",
        clip_sample=False,
        timestep_spacing=spacing,
        prediction_type=prediction,
    )
    theirs.set_timesteps(steps)
    start = np.random.default_rng(0).normal(size=(2, 4, 4, 3)).astype(np.float32)

    def answer(x, t, cos):
        return 0.3 * x + 0.1 * cos(t / 100.0)

    x = torch.tensor(start)
    for t in theirs.timesteps:
        x = theirs.step(answer(x, float(t), np.cos), int(t), x).prev_sample
    plan = make_inverse_plan(config, steps)
    ours = run(plan, lambda x, t, step: answer(x, t, jnp.cos), start)
    np.testing.assert_allclose(ours, x.numpy(), rtol=1e-4, atol=1e-4 * np.abs(ours).max())


def test_inversion_leads_back():
    """For images from one normal distribution the best prediction is known exactly."""
    schedule, spread = NoiseSchedule.from_config(CONFIG), 0.5

    def model(x, t, step):
        alpha, sigma = signal_and_noise(schedule, jnp.full(x.shape[:1], t).astype(int))
        alpha, sigma = alpha.reshape(-1, 1, 1, 1), sigma.reshape(-1, 1, 1, 1)
        return sigma * x / (alpha**2 * spread**2 + sigma**2)

    start = spread * np.random.default_rng(0).normal(size=(4, 8, 8, 1)).astype(np.float32)
    errors = []
    for steps in (50, 200):
        noise = run(make_inverse_plan(CONFIG, steps), model, start)
        assert 0.9 < noise.std() < 1.1
        back = run(make_plan(CONFIG, steps, "ddim", clip_sample=False), model, noise)
        errors.append(np.abs(back - start).max())
    assert errors[1] < errors[0] / 2 and errors[1] < 0.05


def test_settings_that_cannot_be_inverted():
    with pytest.raises(ValueError, match="'linspace' cannot be inverted"):
        make_inverse_plan({**CONFIG, "timestep_spacing": "linspace"}, 10)
    with pytest.raises(ValueError, match="num_inference_steps=0"):
        make_inverse_plan(CONFIG, 0)
