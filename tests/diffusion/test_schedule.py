"""Noise schedule, targets, losses and face boxes, against diffusers and plain numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler

from persongen_jax.diffusion.objective import (
    X0_WEIGHTS,
    check_x0_weighting,
    min_snr_weights,
    offset_noise,
    per_example_loss,
    x0_factors,
)
from persongen_jax.diffusion.schedule import (
    NoiseSchedule,
    add_noise,
    face_box_mask,
    training_target,
    x0_and_eps,
)
from persongen_jax.diffusion.scheduler_config import PREDICTION_TYPES

SDXL = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
CONFIGS = {
    "defaults": {},
    "sdxl": SDXL,
    "cosine": {"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 400},
    "trained": {"trained_betas": [0.1, 0.2, 0.3, 0.4], "num_train_timesteps": 4},
    "zero_snr": SDXL | {"rescale_betas_zero_snr": True},
}
SHAPE = (4, 6, 5, 3)


def arrays(count, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(SHAPE, dtype=np.float32) for _ in range(count)]


def distance(a, b):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return np.linalg.norm(a - b) / np.linalg.norm(b)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_schedule_noise_and_velocity_match_diffusers(config):
    reference = DDPMScheduler(**config)
    schedule = NoiseSchedule.from_config(config | {"prediction_type": "v_prediction"})
    expected = reference.alphas_cumprod.numpy()
    assert schedule.alphas_cumprod.dtype == np.float32
    assert schedule.num_train_timesteps == len(expected)
    # Rescaling takes float32 differences near zero, where torch's square root rounds differently.
    rtol = 1e-5 if config.get("rescale_betas_zero_snr") else 1e-7
    np.testing.assert_allclose(schedule.alphas_cumprod, expected, rtol=rtol)
    np.testing.assert_allclose(1 - schedule.alphas_cumprod[0], 1 - expected[0], rtol=1e-6)
    if config.get("rescale_betas_zero_snr"):
        assert schedule.alphas_cumprod[-1] == 0

    latents, noise = arrays(2)
    timesteps = np.array([0, 1, len(expected) // 2, len(expected) - 1])
    tensors = [torch.from_numpy(x) for x in (latents, noise, timesteps)]
    noisy = jax.jit(lambda *a: add_noise(schedule, *a))(latents, noise, timesteps)
    assert distance(noisy, reference.add_noise(*tensors)) < 1e-6
    target = jax.jit(lambda *a: training_target(schedule, *a))(latents, noise, timesteps)
    assert distance(target, reference.get_velocity(*tensors)) < 1e-6


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_predictions_invert_the_target(prediction_type):
    schedule = NoiseSchedule.from_config(SDXL | {"prediction_type": prediction_type})
    latents, noise = arrays(2)
    timesteps = jnp.array([20, 400, 700, 999])
    target = training_target(schedule, latents, noise, timesteps)
    expected = {"epsilon": noise, "sample": latents}.get(prediction_type)
    if expected is not None:
        np.testing.assert_array_equal(target, expected)
    noisy = add_noise(schedule, latents, noise, timesteps)
    signal = schedule.alphas_cumprod[timesteps][:, None, None, None]
    x0, eps = x0_and_eps(prediction_type, noisy, target, np.sqrt(signal), np.sqrt(1 - signal))
    assert distance(x0, latents) < 1e-5
    assert distance(eps, noise) < 1e-5


def test_targets_are_float32_for_bfloat16_inputs():
    schedule = NoiseSchedule.from_config(SDXL)
    latents, noise = (x.astype(jnp.bfloat16) for x in arrays(2))
    timesteps = jnp.zeros(4, int)
    assert add_noise(schedule, latents, noise, timesteps).dtype == jnp.float32
    assert training_target(schedule, latents, noise, timesteps).dtype == jnp.float32
    assert per_example_loss(latents, noise).dtype == jnp.float32


@pytest.mark.parametrize(
    "config, match",
    [
        ({"beta_schedule": "sigmoid"}, "beta_schedule='sigmoid'.*'scaled_linear'"),
        ({"prediction_type": "flow"}, "prediction_type='flow'.*'v_prediction'"),
        ({"trained_betas": [0.1, 0.2]}, r"trained_betas.*\(2,\).*num_train_timesteps=1000"),
    ],
)
def test_unknown_values_are_named(config, match):
    with pytest.raises(ValueError, match=match):
        NoiseSchedule.from_config(config)


def test_loss_matches_numpy():
    pred, target = arrays(2)
    error = (pred - target) ** 2
    np.testing.assert_allclose(per_example_loss(pred, target), error.mean((1, 2, 3)), rtol=1e-5)
    mask = np.zeros(SHAPE[:3], np.float32)
    mask[0, 2:4, 1:3] = 1
    mask[1] = 1
    mask[2, 0, 0] = 0.25  # a single cell, whatever its weight, is averaged over itself
    expected = [error[0, 2:4, 1:3].mean(), error[1].mean(), error[2, 0, 0].mean(), 0]
    np.testing.assert_allclose(jax.jit(per_example_loss)(pred, target, mask), expected, rtol=1e-5)


@pytest.mark.parametrize(
    "box, rows, columns",
    [
        ((80, 16, 160, 48), (2, 6), (5, 10)),  # on cell borders of 16 x 8 pixels
        ((81, 17, 159, 47), (2, 6), (5, 10)),  # touched cells count whole
        ((100.2, 20.1, 100.3, 20.2), (2, 3), (6, 7)),  # at least one cell
        ((-50, -9, 20, 9), (0, 2), (0, 2)),  # partly outside: clipped at the border
        ((250, 120, 999, 999), (15, 16), (15, 16)),
        ((0, 0, 256, 128), (0, 16), (0, 16)),
    ],
)
def test_face_box_cells(box, rows, columns):
    mask, fell_back = face_box_mask(jnp.array([box]), (128, 256), (16, 16))
    expected = np.zeros((1, 16, 16), np.float32)
    expected[:, rows[0] : rows[1], columns[0] : columns[1]] = 1
    np.testing.assert_array_equal(mask, expected)
    assert not fell_back[0]


def test_face_box_falls_back_to_the_whole_image():
    nan, inf = np.nan, np.inf
    boxes = [
        (0, 0, 0, 0),
        (10, 10, 10, 40),
        (40, 10, 10, 40),
        (-30, 5, 0, 40),
        (128, 5, 150, 40),
        (5, 200, 40, 240),
        (nan, 5, 40, 40),
        (0, 0, inf, 40),
        (8, 8, 24, 24),
    ]
    sizes = ((128, 128), (16, 16))
    mask, fell_back = jax.jit(lambda b: face_box_mask(b, *sizes))(np.array(boxes, np.float32))
    np.testing.assert_array_equal(fell_back, [True] * 8 + [False])
    np.testing.assert_array_equal(mask.sum((1, 2)), [256] * 8 + [4])
    assert mask.dtype == jnp.float32


# Signal-to-noise ratios 99, 9, 1, 1/4 and 0.
SIGNAL = np.array([0.99, 0.9, 0.5, 0.2, 0.0], np.float32)


@pytest.mark.parametrize(
    ("prediction_type", "wanted"),
    [
        ("epsilon", [5 / 99, 5 / 9, 1, 1, 1]),
        ("v_prediction", [5 / 100, 5 / 10, 1 / 2, 0.25 / 1.25, 0]),
        ("sample", [5, 5, 1, 0.25, 0]),
    ],
)
def test_min_snr(prediction_type, wanted):
    schedule = NoiseSchedule(SIGNAL, prediction_type, len(SIGNAL))
    weights = min_snr_weights(schedule, np.arange(len(SIGNAL)), 5.0)
    assert np.allclose(weights, wanted, rtol=1e-4)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize("weighting", X0_WEIGHTS)
def test_an_objective_on_x0_is_its_transcription(weighting, prediction_type):
    """w_t |x̂₀ - x₀|² by way of x̂₀, in float64, at early and late timesteps."""
    schedule = NoiseSchedule.from_config({**SDXL, "prediction_type": prediction_type})
    timesteps = np.array([0, 300, 700, 999])
    signal = schedule.alphas_cumprod[timesteps].astype(np.float64).reshape(-1, 1, 1, 1)
    latents, noise, error = (array.astype(np.float64) for array in arrays(3))
    noisy = np.sqrt(signal) * latents + np.sqrt(1 - signal) * noise
    target = {
        "epsilon": noise,
        "sample": latents,
        "v_prediction": np.sqrt(signal) * noise - np.sqrt(1 - signal) * latents,
    }[prediction_type]
    pred = target + error
    x0 = {
        "epsilon": (noisy - np.sqrt(1 - signal) * pred) / np.sqrt(signal),
        "sample": pred,
        "v_prediction": np.sqrt(signal) * noisy - np.sqrt(1 - signal) * pred,
    }[prediction_type]
    snr = (signal / (1 - signal)).ravel()
    weights = {"constant": snr**0, "snr": snr, "snr_plus_1": snr + 1}
    weights["truncated_snr"] = np.maximum(snr, 1)
    wanted = weights[weighting] * ((x0 - latents) ** 2).mean((1, 2, 3))
    ours = x0_factors(schedule, timesteps, weighting) * (error**2).mean((1, 2, 3))
    assert np.allclose(ours, wanted, rtol=1e-4)


def test_an_objective_on_x0_that_is_infinite_or_unknown_is_refused():
    ends = NoiseSchedule.from_config(CONFIGS["zero_snr"])
    for weighting in X0_WEIGHTS.keys() - {"snr"}:
        with pytest.raises(ValueError, match="ends without signal"):
            check_x0_weighting(ends, weighting)
    check_x0_weighting(ends, "snr")
    assert np.isfinite(x0_factors(ends, np.arange(1000), "snr")).all()
    with pytest.raises(ValueError, match="'p2' is unknown; give constant, snr, snr_plus_1"):
        check_x0_weighting(ends, "p2")


def test_offset_noise_shifts_each_channel_of_each_image():
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((500, 16, 16, 4))
    offsets = rng.standard_normal((500, 1, 1, 4))
    means = offset_noise(noise, offsets, 0.5).mean((1, 2))
    # The mean of 256 independent draws adds 1/256 to the variance 0.25; 2000 means: within 10 %.
    assert np.isclose(means.var(), 0.25 + 1 / 256, rtol=0.1)
    assert np.corrcoef(means.ravel(), offsets.ravel())[0, 1] > 0.98
