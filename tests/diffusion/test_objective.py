"""The objective's options: loss and gradient against torch in float64, and the drawn timesteps."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from persongen_jax.diffusion.objective import (
    debiased_weights,
    pseudo_huber,
    timestep_weights,
)
from persongen_jax.diffusion.schedule import NoiseSchedule
from persongen_jax.diffusion.scheduler_config import scheduler_of_run, with_zero_snr
from persongen_jax.systems.diffusion import DiffusionSystem, Pixels

SDXL = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
V = {"prediction_type": "v_prediction"}
ZERO = with_zero_snr({**SDXL, **V})
TIMESTEPS = np.array([0, 3, 250, 700, 999])
SHAPE = (len(TIMESTEPS), 4, 4, 3)


class Scaled(DiffusionSystem):
    """Predicts ``weight`` [c] times what it sees."""

    codec, fields = Pixels(3), ()

    def __init__(self, scheduler=SDXL, **settings):
        self.config = self.defaults()
        self.config.update(settings)
        self.schedule = NoiseSchedule.from_config(scheduler)
        self.model = nnx.Module()
        self.model.weight = nnx.Param(jnp.array([0.5, -0.3, 1.2]))

    def source(self):
        raise AssertionError("it is given batches")

    def condition(self, model, batch):
        return None

    def denoise(self, model, x, t, condition, step=None):
        return x * model.weight[...]


def arrays():
    return np.random.default_rng(0).standard_normal((2, *SHAPE), np.float32)


def loss_and_gradient(system):
    pixels, noise = arrays()
    draws = {"noise": noise, "timesteps": TIMESTEPS, "latents": noise}
    draws["drop"] = np.zeros(len(pixels), bool)

    def loss(model):
        return system.losses(model, {"pixel_values": pixels}, draws)["loss"].mean()

    value, gradient = nnx.value_and_grad(loss)(system.model)
    return float(value), np.asarray(gradient["weight"][...])


def by_torch(schedule, error, weight):
    """The same written out: ``error`` of (difference, timestep), ``weight`` of the SNR."""
    pixels, noise = (torch.from_numpy(x).double() for x in arrays())
    scale = torch.tensor([0.5, -0.3, 1.2], dtype=torch.float64, requires_grad=True)
    losses = []
    for i, t in enumerate(TIMESTEPS):
        signal = float(schedule.alphas_cumprod[t])
        noisy = math.sqrt(signal) * pixels[i] + math.sqrt(1 - signal) * noise[i]
        target = noise[i]
        if schedule.prediction_type == "v_prediction":
            target = math.sqrt(signal) * noise[i] - math.sqrt(1 - signal) * pixels[i]
        losses.append(weight(signal / (1 - signal)) * error(scale * noisy - target, t).mean())
    loss = torch.stack(losses).mean()
    loss.backward()
    return loss.item(), scale.grad.numpy()


def threshold(kind, c, schedule, t):
    if kind == "exponential":
        return math.exp(math.log(c) * t / 1000)
    if kind == "snr":
        signal = float(schedule.alphas_cumprod[t])
        return c if signal == 0 else (1 - c) / (1 + math.sqrt((1 - signal) / signal)) ** 2 + c
    return c


def transcribed(schedule, settings):
    def error(difference, t):
        kind = settings.get("loss_type", "l2")
        if kind == "l2":
            return difference**2
        c = threshold(
            settings.get("huber_schedule", "snr"), settings.get("huber_c", 0.1), schedule, t
        )
        return 2 * (c if kind == "huber" else 1) * (torch.sqrt(difference**2 + c**2) - c)

    def weight(snr):
        v = schedule.prediction_type == "v_prediction"
        if gamma := settings.get("min_snr_gamma"):
            return min(snr, gamma) / (snr + 1 if v else snr)
        if settings.get("debiased_weights"):
            return 1 / (min(snr, 1000) + 1) if v else 1 / math.sqrt(min(snr, 1000))
        return 1.0

    return error, weight


@pytest.mark.parametrize(
    ("scheduler", "settings"),
    [
        (SDXL, {"loss_type": "huber", "huber_schedule": "constant", "huber_c": 0.3}),
        (SDXL, {"loss_type": "huber", "huber_schedule": "exponential"}),
        (SDXL, {"loss_type": "smooth_l1", "huber_schedule": "snr"}),
        (ZERO, {"loss_type": "huber", "zero_snr": True}),
        (SDXL, {"debiased_weights": True}),
        (SDXL | V, {"debiased_weights": True, "loss_type": "huber"}),
        (SDXL, {"min_snr_gamma": 5.0, "loss_type": "smooth_l1"}),
        (ZERO, {"min_snr_gamma": 5.0}),
        (ZERO, {}),
    ],
    ids=str,
)
def test_loss_and_gradient_are_torch_s(scheduler, settings):
    system = Scaled(scheduler, **settings)
    system.check_objective()
    loss, gradient = loss_and_gradient(system)
    wanted, wanted_gradient = by_torch(system.schedule, *transcribed(system.schedule, settings))
    assert abs(loss - wanted) <= 1e-5 * abs(wanted)
    # Components may nearly cancel over the batch, so the largest is the measure.
    assert np.abs(gradient - wanted_gradient).max() <= 1e-5 * np.abs(wanted_gradient).max()


def test_the_default_is_the_mean_squared_error_at_the_timesteps_of_before():
    """Bit-equal, so that a run of before resumes alike."""
    system = Scaled()
    pixels, noise = arrays()
    key_of = functools.partial(jax.random.fold_in, jax.random.key(3))
    draws = system.draw(key_of, {"pixel_values": pixels})
    assert np.array_equal(draws["timesteps"], jax.random.randint(key_of(2), (5,), 0, 1000))
    draws = {**draws, "noise": noise, "timesteps": TIMESTEPS}
    loss = system.losses(system.model, {"pixel_values": pixels}, draws)["loss"]
    signal = jnp.asarray(system.schedule.alphas_cumprod)[TIMESTEPS][:, None, None, None]
    noisy = jnp.sqrt(signal) * pixels + jnp.sqrt(1 - signal) * noise
    wanted = jnp.square(noisy * system.model.weight[...] - noise).mean(-1).mean((1, 2))
    assert np.array_equal(loss, wanted)


def test_a_small_difference_keeps_its_digits():
    """Written as a difference of roots, float32 would leave three digits of it."""
    error = pseudo_huber(jnp.float32(1e-4), jnp.float32(1.0))
    assert np.isclose(error, 2 * (math.sqrt(1e-8 + 1) - 1), rtol=1e-6)


BIASES = {
    "later": ({"timestep_bias_portion": 0.2}, range(800, 1000)),
    "earlier": ({"timestep_bias_portion": 0.05}, range(50)),
    "range": ({"timestep_bias_begin": 200, "timestep_bias_end": 500}, range(200, 500)),
}


@pytest.mark.parametrize("kind", BIASES)
def test_timesteps_are_drawn_as_often_as_the_bias_says(kind):
    """Bins of 50; χ² with 19 degrees of freedom is below 43.8 for 99.9 % of all keys."""
    settings, favoured = BIASES[kind]
    system = Scaled(timestep_bias=kind, timestep_bias_multiplier=3.0, **settings)
    system.check_objective()
    wanted = np.array([3.0 if t in favoured else 1.0 for t in range(1000)])
    wanted /= wanted.sum()
    assert np.allclose(timestep_weights(system.config, 1000), wanted, rtol=1e-6)
    key_of = functools.partial(jax.random.fold_in, jax.random.key(7))
    rows = 3000
    batch = {"pixel_values": np.zeros((rows, 1, 1, 3), np.float32)}
    drawn = np.asarray(system.draw(key_of, batch)["timesteps"])
    assert drawn.min() >= 0 and drawn.max() <= 999 and drawn.dtype == np.int32
    expected = rows * wanted.reshape(20, 50).sum(1)
    off = np.square(np.bincount(drawn // 50, minlength=20) - expected) / expected
    assert off.sum() < 43.8


REFUSED = {
    "both weight by the noise level": {"min_snr_gamma": 5.0, "debiased_weights": True},
    "x0_weighting='snr' and config.debiased": {"x0_weighting": "snr", "debiased_weights": True},
    "all weight": {"x0_weighting": "snr", "debiased_weights": True, "min_snr_gamma": 1.0},
    "is none; give one of them": {"x0_weighting": "snr", "loss_type": "huber"},
    "loss_type='l3' is unknown; give l2, huber, smooth_l1": {"loss_type": "l3"},
    "huber_schedule='cosine' is unknown": {"huber_schedule": "cosine"},
    "huber_c=0: give": {"huber_c": 0.0},
    "timestep_bias='late' is unknown": {"timestep_bias": "late"},
    "never drawn": {"timestep_bias": "later", "timestep_bias_multiplier": 0.0},
    "are no range": {
        "timestep_bias": "range",
        "timestep_bias_begin": 600,
        "timestep_bias_end": 600,
    },
    "more than 0": {"timestep_bias": "later", "timestep_bias_portion": 0.0001},
    "of its own": {"zero_snr": True},
}


@pytest.mark.parametrize("said", REFUSED)
def test_what_makes_no_sense_is_refused(said):
    with pytest.raises(ValueError, match=said):
        Scaled(**REFUSED[said]).check_objective()


def test_debiased_weights_need_a_signal_and_a_prediction_of_noise_or_v():
    for scheduler, said in (
        (SDXL | {"rescale_betas_zero_snr": True}, "ends without signal"),
        (SDXL | {"prediction_type": "sample"}, "predict noise or v"),
    ):
        with pytest.raises(ValueError, match=said):
            Scaled(scheduler, debiased_weights=True).check_objective()
    # At an SNR of 1000 and more the weight no longer falls.
    signal = np.array([0.9999, 0.9998, 0.5], np.float32)
    weights = debiased_weights(NoiseSchedule(signal, "epsilon", 3), np.arange(3))
    assert np.allclose(weights, [1000**-0.5, 1000**-0.5, 1], rtol=1e-4)


def test_a_run_s_scheduler_is_the_base_s_with_what_it_changes():
    base = {**SDXL, "prediction_type": "epsilon", "timestep_spacing": "leading"}
    base["_use_default_values"] = ["prediction_type", "timestep_spacing", "steps_offset"]
    assert scheduler_of_run({}, base) is base
    changed = scheduler_of_run({"prediction_type": "v_prediction", "zero_snr": True}, base)
    assert changed["timestep_spacing"] == "trailing"
    assert changed["_use_default_values"] == ["steps_offset"]
    schedule = NoiseSchedule.from_config(changed)
    assert schedule.prediction_type == "v_prediction" and schedule.alphas_cumprod[-1] == 0
    with pytest.raises(ValueError, match="--config.prediction_type=v_prediction"):
        scheduler_of_run({"zero_snr": True}, base)
