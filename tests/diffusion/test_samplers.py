"""Whole sampling trajectories against diffusers' schedulers, step by step, in float32."""

import itertools
from unittest import mock

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import rescale_noise_cfg

from persongen_jax.diffusion import (
    plan as sampling_plan,
)
from persongen_jax.diffusion import (
    samplers as sampling,
)
from tests.diffusion.schedulers import CLASSES, SDXL

SPACINGS = ("leading", "trailing", "linspace")

PREDICTIONS = ("epsilon", "v_prediction", "sample")

SHAPE = (2, 4, 3, 4)

TOLERANCE = 1e-5

WEIGHTS = np.random.default_rng(7).standard_normal((5, 4), dtype=np.float32)


def jax_model(x, timestep, step_index):
    return jnp.tanh(x @ WEIGHTS[:4] + timestep / 1000 * WEIGHTS[4])


def torch_model(x, timestep):
    weights = torch.from_numpy(WEIGHTS)
    return torch.tanh(x @ weights[:4] + timestep / 1000 * weights[4])


@jax.jit
def run(plan, carry, key, noise, start, stop):
    return sampling.run_steps(plan, jax_model, carry, key, start, stop, noise)


def start(plan, seed=0):
    generator = torch.Generator().manual_seed(seed)
    first = torch.randn(SHAPE, generator=generator)
    noise = torch.randn((plan.num_steps, *SHAPE), generator=generator)
    return first, noise


def our_trajectory(plan, first, noise):
    carry = sampling.init_carry(plan, sampling.initial_latents(plan, jnp.asarray(first.numpy())))
    latents = [np.asarray(sampling.final_latents(carry))]
    for i in range(plan.num_steps):
        carry = run(plan, carry, None, noise.numpy(), i, i + 1)
        latents.append(np.asarray(sampling.final_latents(carry)))
    return latents


def diffusers_trajectory(scheduler, first, noise, of_step, begin=0):
    step_arguments = of_step if isinstance(scheduler, diffusers.DDIMScheduler) else {}
    latents = first * scheduler.init_noise_sigma
    trajectory = [latents]
    with mock.patch(f"{type(scheduler).__module__}.randn_tensor") as randn:
        for i, t in list(enumerate(scheduler.timesteps))[begin:]:
            randn.return_value = noise[i]
            output = torch_model(scheduler.scale_model_input(latents, t), t)
            latents = scheduler.step(output, t, latents, **step_arguments).prev_sample
            trajectory.append(latents)
    return [x.numpy() for x in trajectory]


def distance(a, b):
    return np.linalg.norm(np.float64(a) - b) / np.linalg.norm(np.float64(b))


def build(name, n, overrides):
    """The same run configured here and in diffusers: (plan, scheduler, arguments of its step)."""
    overrides = dict(overrides)
    plan = sampling_plan.make_plan(SDXL, n, name, **overrides)
    of_step = {"eta": overrides.pop("eta", 0.0)}
    of_step["use_clipped_model_output"] = overrides.pop("use_clipped_model_output", False)
    scheduler = CLASSES[name].from_config(SDXL, **overrides)
    scheduler.set_timesteps(n)
    if hasattr(scheduler, "set_begin_index"):
        # Otherwise diffusers looks for the first timestep and skips a step if it occurs twice.
        scheduler.set_begin_index(0)
    return plan, scheduler, of_step


def cases():
    everything = itertools.product(CLASSES, SPACINGS, PREDICTIONS, (1, 4, 20))
    for name, spacing, prediction, n in everything:
        # diffusers does not implement it; test_euler_ancestral_takes_sample_prediction does.
        if (name, prediction) != ("euler_ancestral", "sample"):
            yield name, n, {"timestep_spacing": spacing, "prediction_type": prediction}
    cosine = {"beta_schedule": "squaredcos_cap_v2"}
    extras = {
        "ddpm": [
            {"variance_type": "fixed_large"},
            {"variance_type": "fixed_small_log"},
            {"clip_sample": True, "clip_sample_range": 0.7},
            {"steps_offset": 0},
        ],
        "ddim": [
            {"eta": 0.7},
            {"eta": 1.0, "prediction_type": "v_prediction"},
            {"clip_sample": True},
            {"clip_sample": True, "use_clipped_model_output": True, "eta": 0.5},
            {"set_alpha_to_one": True, "steps_offset": 0},
        ],
        "euler": [
            {"use_karras_sigmas": True},
            {"use_karras_sigmas": True, "sigma_min": 0.1, "sigma_max": 10.0},
            {"final_sigmas_type": "sigma_min"},
            {"num_train_timesteps": 1000, "trained_betas": np.linspace(1e-4, 0.03, 1000).tolist()},
        ],
        "euler_ancestral": [{"steps_offset": 0, "beta_schedule": "linear"}],
        "dpmpp_2m": [
            {"use_karras_sigmas": True},
            {"use_karras_sigmas": True, "final_sigmas_type": "sigma_min"},
            {"use_karras_sigmas": True, "lambda_min_clipped": -5.1, **cosine},
            {"lambda_min_clipped": -5.1, **cosine},
            {"lower_order_final": False},
            {"final_sigmas_type": "sigma_min"},
            {"final_sigmas_type": "sigma_min", "lower_order_final": False},
            {"final_sigmas_type": "sigma_min", "euler_at_final": True},
            {"solver_type": "bh2"},
        ],
    }
    for name, variants in extras.items():
        zero_snr = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}
        for variant, spacing in itertools.product([*variants, zero_snr], SPACINGS):
            for n in (4, 20):
                yield name, n, {**variant, "timestep_spacing": spacing}
    yield "dpmpp_2m", 13, {"final_sigmas_type": "sigma_min"}
    for name, n in itertools.product(CLASSES, (7, 13)):  # not divisors of 1000
        yield name, n, {"timestep_spacing": "trailing"}


def grouped_cases():
    groups = {}
    for name, n, overrides in cases():
        groups.setdefault((name, n), []).append(overrides)
    return groups


@pytest.mark.parametrize("name, n", grouped_cases(), ids=lambda x: str(x))
def test_trajectories_match_diffusers(name, n):
    for overrides in grouped_cases()[name, n]:
        plan, scheduler, of_step = build(name, n, overrides)
        first, noise = start(plan)
        # Fractional timesteps (Euler with Karras sigmas) may differ in their last bit.
        expected = scheduler.timesteps.numpy().astype(np.float32)
        exact = (expected == expected.round()).all()
        np.testing.assert_allclose(
            plan.timesteps, expected, rtol=0 if exact else 2e-7, err_msg=str(overrides)
        )
        ours = our_trajectory(plan, first, noise)
        reference = diffusers_trajectory(scheduler, first, noise, of_step)
        assert len(ours) == len(reference) == n + 1
        # From sigma = 4096 to about 1, an Euler step cancels three digits, here and in diffusers.
        tolerance = 10 * TOLERANCE if overrides.get("rescale_betas_zero_snr") else TOLERANCE
        for i, (a, b) in enumerate(zip(ours, reference, strict=True)):
            assert distance(a, b) < tolerance, (i, overrides)


@pytest.mark.parametrize("name", ["euler", "euler_ancestral", "dpmpp_2m"])
def test_sigmas_match_diffusers(name):
    for spacing, zero_snr in itertools.product(SPACINGS, (False, True)):
        overrides = {"timestep_spacing": spacing, "rescale_betas_zero_snr": zero_snr}
        plan, scheduler, _ = build(name, 20, overrides)
        assert plan.sigmas.dtype == np.float32
        np.testing.assert_allclose(plan.sigmas, scheduler.sigmas, rtol=2e-5)
        assert plan.init_noise_sigma == pytest.approx(float(scheduler.init_noise_sigma), rel=1e-5)


def test_beginning_in_the_middle_takes_a_first_order_step():
    plan, scheduler, _ = build("dpmpp_2m", 20, {})
    scheduler.set_begin_index(8)
    first, noise = start(plan)
    carry = run(plan, sampling.init_carry(plan, first.numpy()), None, None, 8, 20)
    reference = diffusers_trajectory(scheduler, first, noise, 0.0, begin=8)[-1]
    assert distance(sampling.final_latents(carry), reference) < TOLERANCE


def test_euler_ancestral_takes_sample_prediction():
    def as_sample(x, timestep, i):  # the epsilon model, said as x0
        ratio = jnp.asarray(plan.sigmas)[i]
        return x * jnp.sqrt(ratio**2 + 1) - ratio * jax_model(x, timestep, i)

    plan = sampling_plan.make_plan(SDXL, 10, "euler_ancestral")
    first, noise = start(plan)
    expected = our_trajectory(plan, first, noise)[-1]
    plan = sampling_plan.make_plan(SDXL, 10, "euler_ancestral", prediction_type="sample")
    carry = sampling.init_carry(plan, sampling.initial_latents(plan, jnp.asarray(first.numpy())))
    carry = sampling.run_steps(plan, as_sample, carry, None, 0, 10, noise.numpy())
    assert distance(sampling.final_latents(carry), expected) < 1e-4


def test_lightning_setting():
    plan = sampling_plan.make_plan(SDXL, 4, "euler", timestep_spacing="trailing")
    np.testing.assert_array_equal(plan.timesteps, [999, 749, 499, 249])
    assert plan.sigmas[-1] == 0 and plan.init_noise_sigma == plan.sigmas[0]


def test_trailing_never_overruns():
    # num_train / n rounds so that arange alone would give a 62nd timestep, -1.
    plan = sampling_plan.make_plan(SDXL, 61, "ddpm", timestep_spacing="trailing")
    assert plan.num_steps == 61 and plan.timesteps.min() >= 0


@pytest.mark.parametrize("name", CLASSES)
def test_segments_equal_one_run(name):
    overrides = {"eta": 0.5} if name == "ddim" else {}
    plan = sampling_plan.make_plan(SDXL, 6, name, **overrides)
    first, _ = start(plan)
    carry = sampling.init_carry(plan, sampling.initial_latents(plan, jnp.asarray(first.numpy())))
    key = jax.random.key(3)
    whole = run(plan, carry, key, None, 0, 6)
    split = run(plan, run(plan, carry, key, None, 0, 3), key, None, 3, 6)
    jax.tree.map(np.testing.assert_array_equal, whole, split)
    assert np.isfinite(sampling.final_latents(whole)).all()


def test_noise_belongs_to_its_example():
    plan = sampling_plan.make_plan(SDXL, 5, "euler_ancestral")
    latents = sampling.initial_latents(plan, jnp.asarray(start(plan)[0].numpy()))
    latents = jnp.stack([latents[0]] * 3)

    def sample(latents, key):
        carry = sampling.init_carry(plan, latents)
        return np.asarray(sampling.final_latents(run(plan, carry, key, None, 0, 5)))

    key = jax.random.key(11)
    padded = sample(latents, key)
    np.testing.assert_array_equal(sample(latents[:2], key), padded[:2])
    assert distance(padded[0], padded[1]) > 0.1
    np.testing.assert_array_equal(sample(latents, jax.random.key_data(key)), padded)
    folded = jnp.stack([jax.random.fold_in(key, j) for j in range(3)])
    np.testing.assert_array_equal(sample(latents, folded), padded)

    keys = jax.random.split(key, 3)
    by_key = sample(latents, keys)
    np.testing.assert_array_equal(sample(latents[1:], keys[::-1][:2])[0], by_key[2])
    with pytest.raises(ValueError, match=r"shape \(3,\).*one key or 2"):
        sample(latents[:2], keys)
    with pytest.raises(ValueError, match="'euler_ancestral' draws noise"):
        sample(latents, None)


def test_the_noise_drawn_is_standard_normal_and_new_each_step():
    plan = sampling_plan.make_plan(SDXL, 2, "ddpm")
    zeros = sampling.init_carry(plan, jnp.zeros((2, 32, 32, 4)))

    def zero_model(x, timestep, i):
        return jnp.zeros_like(x)

    draws = [
        np.asarray(
            sampling.final_latents(
                sampling.run_steps(plan, zero_model, zeros, jax.random.key(0), i, i + 1)
            )
        )
        / plan.coefficients["noise_std"][i]
        for i in range(2)
    ]
    for draw in draws:
        assert abs(draw.mean()) < 0.05 and abs(draw.std() - 1) < 0.05
    assert abs(np.corrcoef(draws[0].ravel(), draws[1].ravel())[0, 1]) < 0.05


def test_changed_numbers_do_not_recompile():
    @jax.jit
    def sample(plan, latents, scale, rescale, stop):
        def guided(x, timestep, i):
            cond = jax_model(x, timestep, i)
            return sampling.guide(cond, 0.5 * x, scale, rescale)

        carry = sampling.init_carry(plan, latents)
        carry = sampling.run_steps(plan, guided, carry, jax.random.key(0), 0, stop)
        return sampling.final_latents(carry)

    latents = np.ones(SHAPE, np.float32)
    for overrides in ({}, {"use_karras_sigmas": True}, {"timestep_spacing": "trailing"}):
        plan = sampling_plan.make_plan(SDXL, 8, **overrides)
        for scale, rescale in ((5.0, 0.0), (7.5, 0.7)):
            sample(plan, latents, scale, rescale, 8)
    assert sample._cache_size() == 1
    for overrides in ({"eta": 0.2}, {"eta": 0.9, "clip_sample": True}):
        sample(sampling_plan.make_plan(SDXL, 8, "ddim", **overrides), latents, 5.0, 0.0, 4)
    assert sample._cache_size() == 2


@pytest.mark.parametrize("name", ["euler", "dpmpp_2m", "euler_ancestral"])
def test_the_last_prediction_is_where_the_latents_end(name):
    plan = sampling_plan.make_plan(SDXL, 6, name, timestep_spacing="trailing")
    first, noise = start(plan)
    carry = sampling.init_carry(plan, sampling.initial_latents(plan, jnp.asarray(first.numpy())))
    assert not sampling.predicted_latents(carry).any()
    carry = run(plan, carry, None, noise.numpy(), 0, 3)
    assert np.abs(sampling.predicted_latents(carry) - sampling.final_latents(carry)).max() > 0.1
    carry = run(plan, carry, None, noise.numpy(), 3, 6)
    ends = sampling.predicted_latents(carry), sampling.final_latents(carry)
    assert np.abs(ends[0] - ends[1]).max() < 1e-5 * np.abs(ends[1]).max()


def test_static_bounds_can_be_differentiated():
    plan = sampling_plan.make_plan(SDXL, 4, "euler", timestep_spacing="trailing")

    def loss(latents):
        carry = sampling.run_steps(
            plan, jax_model, sampling.init_carry(plan, latents), None, 0, plan.num_steps
        )
        return jnp.square(sampling.final_latents(carry)).mean()

    gradient = jax.grad(loss)(jnp.ones(SHAPE))
    assert np.isfinite(gradient).all() and np.abs(gradient).max() > 0


def test_guidance_matches_diffusers():
    rng = np.random.default_rng(2)
    cond, uncond = rng.standard_normal((2, *SHAPE), dtype=np.float32)
    tensors = [torch.from_numpy(x) for x in (cond, uncond)]
    guided = tensors[1] + 6.0 * (tensors[0] - tensors[1])
    np.testing.assert_allclose(sampling.guide(cond, uncond, 6.0), guided, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(
        jax.jit(sampling.guide)(cond, uncond, 6.0, 0.7),
        rescale_noise_cfg(guided, tensors[0], 0.7),
        rtol=1e-5,
        atol=1e-5,
    )
    zeros = jnp.zeros(SHAPE, jnp.bfloat16)
    assert (sampling.guide(zeros, zeros, 5.0, 0.7) == 0).all()
    assert sampling.guide(zeros, zeros, 5.0).dtype == jnp.float32
