"""The numbers of one sampling run, computed once on the host in float64.

`make_plan` turns a scheduler config into a `Plan`. The plan is data to the compiled program: other
timesteps, sigmas or eta do not recompile it.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from persongen_jax.diffusion.schedule import NoiseSchedule
from persongen_jax.diffusion.scheduler_config import resolve_config

Step = int | jax.Array  # possibly traced


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """One sampling run, step by step. A pytree: arrays are leaves, the rest is static.

    Attributes:
      timesteps: [n] float32 in 0..T-1, the model's input; falling.
      sigmas: [n + 1] float32 noise-to-signal ratios at those steps, then the one reached at the
        end (usually 0). Infinite at a step with zero terminal SNR (DDPM, DDIM).
      init_noise_sigma: float32 standard deviation of the first latents.
      coefficients: name → [n] float32, the numbers of the sampler's own update.
      name: short name, a key of `SAMPLERS`.
      prediction_type: what the model predicts.
      stochastic: whether the update draws noise.
    """

    timesteps: np.ndarray
    sigmas: np.ndarray
    init_noise_sigma: np.float32
    coefficients: dict[str, np.ndarray]
    name: str = dataclasses.field(metadata={"static": True})
    prediction_type: str = dataclasses.field(metadata={"static": True})
    stochastic: bool = dataclasses.field(metadata={"static": True})

    @property
    def num_steps(self) -> int:
        """Number of model calls; fewer than steps if `lambda_min_clipped` cuts some off."""
        return self.timesteps.shape[0]

    @property
    def calls_per_step(self) -> int:
        """Model calls in each of the sampling steps that were asked for, but perhaps the last."""
        return 2 if self.name == "k_dpmpp_sde" else 1

    def at(self, i: Step) -> dict[str, jax.Array]:
        """The coefficients of step i (may be traced)."""
        return {key: jnp.asarray(value)[i] for key, value in self.coefficients.items()}


def make_plan(
    scheduler_config: dict, num_inference_steps: int, scheduler: str | None = None, **overrides: Any
) -> Plan:
    """Precomputes a sampling run in float64.

    Args:
      scheduler_config: contents of a diffusers scheduler_config.json.
      num_inference_steps: steps, at least 1. "k_dpmpp_sde" asks the model twice in each but the
        last: its plan has 2 n - 1 steps.
      scheduler: short name ("ddpm", "ddim", "euler", "euler_ancestral", "dpmpp_2m", "k_dpmpp_2m",
        "k_dpmpp_sde") or diffusers class name; None takes the config's `_class_name`.
      **overrides: parameters that override the config, e.g. use_karras_sigmas=True, eta=0.5.

    Raises:
      ValueError: see `resolve_config`; also step counts, eta or timesteps out of range, and an
        epsilon prediction at zero terminal SNR.
    """
    name, config = resolve_config(scheduler_config, scheduler, **overrides)
    schedule = NoiseSchedule.from_config(config)
    if not 1 <= num_inference_steps <= schedule.num_train_timesteps:
        raise ValueError(
            f"num_inference_steps={num_inference_steps} must lie in "
            f"1..{schedule.num_train_timesteps} (num_train_timesteps)"
        )
    timesteps, sigmas, init_noise_sigma, coefficients, stochastic = _PLANNERS[name](
        config, schedule.alphas_cumprod, num_inference_steps
    )
    if config["prediction_type"] == "epsilon" and np.isinf(sigmas).any():
        raise ValueError(
            "prediction_type='epsilon' says nothing about the image at zero terminal SNR, which "
            f"sampler {name!r} visits with rescale_betas_zero_snr=True; use a v_prediction model, "
            "or timestep_spacing='leading'"
        )
    return Plan(
        timesteps=timesteps.astype(np.float32),
        sigmas=sigmas.astype(np.float32),
        init_noise_sigma=np.float32(init_noise_sigma),
        coefficients={key: value.astype(np.float32) for key, value in coefficients.items()},
        name=name,
        prediction_type=config["prediction_type"],
        stochastic=stochastic,
    )


def _spaced_timesteps(config: dict, n: int, num_train: int, whole: bool) -> np.ndarray:
    """[n] falling timesteps, spaced as in table 2 of 2305.08891; `whole` rounds linspace."""
    if config["timestep_spacing"] == "linspace":
        timesteps = np.linspace(0, num_train - 1, n)[::-1]
        return timesteps.round() if whole else timesteps.astype(np.float32)
    if config["timestep_spacing"] == "leading":
        return _within_training(
            np.arange(n)[::-1] * (num_train // n) + config["steps_offset"], num_train
        )
    # For some n the rounding of num_train / n lets arange run one step too far, below 0.
    return np.arange(num_train, 0, -num_train / n)[:n].round() - 1


def _within_training(timesteps: np.ndarray, num_train: int) -> np.ndarray:
    if timesteps[0] > num_train - 1:
        raise ValueError(
            f"the first timestep is {timesteps[0]:.0f}, past the last trained one "
            f"{num_train - 1}; lower steps_offset or num_inference_steps"
        )
    return timesteps


def _sigma(alphas_cumprod: np.ndarray) -> np.ndarray:
    """Noise-to-signal ratio of each alphas_cumprod; infinite where no signal is left."""
    with np.errstate(divide="ignore"):
        return np.sqrt((1 - alphas_cumprod) / alphas_cumprod)


def _finite_training_sigmas(config: dict, alphas_cumprod: np.ndarray) -> np.ndarray:
    """[T] sigmas; a zero terminal SNR becomes 2^-24 so that the largest is 4096, not infinite."""
    if config["rescale_betas_zero_snr"]:
        alphas_cumprod = np.append(alphas_cumprod[:-1], np.float32(2**-24))
    return _sigma(alphas_cumprod)


def _karras_sigmas(config: dict, sigma_max: float, sigma_min: float, n: int) -> np.ndarray:
    """[n] falling sigmas, evenly spaced in sigma^(1/7) (Karras 2206.00364, eq. 5)."""
    sigma_max = sigma_max if config["sigma_max"] is None else config["sigma_max"]
    sigma_min = sigma_min if config["sigma_min"] is None else config["sigma_min"]
    rho = 7.0
    start, end = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    return (start + np.linspace(0, 1, n) * (end - start)) ** rho


def _timesteps_of(sigmas: np.ndarray, training_sigmas: np.ndarray) -> np.ndarray:
    """The (fractional) timesteps at which training had these sigmas."""
    return np.interp(np.log(sigmas), np.log(training_sigmas), np.arange(len(training_sigmas)))


def _signal_and_noise(sigmas: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(alpha, sigma) with alpha^2 + sigma^2 = 1 and the given ratio sigma / alpha."""
    alpha = 1 / np.sqrt(sigmas.astype(np.float64) ** 2 + 1)
    return alpha, alpha * sigmas


def _clip_range(config: dict, n: int) -> np.ndarray:
    # An infinite range instead of a flag: one program with or without clipping.
    return np.full(n, config["clip_sample_range"] if config["clip_sample"] else np.inf)


def _plan_ddpm(config, alphas_cumprod, n):
    timesteps = _spaced_timesteps(config, n, len(alphas_cumprod), whole=True).astype(int)
    signal = alphas_cumprod[timesteps].astype(np.float64)
    previous = np.append(signal[1:], 1.0)
    beta = 1 - signal / previous
    if config["variance_type"] == "fixed_large":
        variance = beta
    else:
        variance = np.maximum(beta * (1 - previous) / (1 - signal), 1e-20)
    coefficients = {
        "alpha_t": np.sqrt(signal),
        "sigma_t": np.sqrt(1 - signal),
        "clip_range": _clip_range(config, n),
        "x0_weight": np.sqrt(previous) * beta / (1 - signal),
        "xt_weight": np.sqrt(signal / previous) * (1 - previous) / (1 - signal),
        "noise_std": np.where(timesteps > 0, np.sqrt(variance), 0),
    }
    return timesteps, _sigma(np.append(signal, 1.0)), 1.0, coefficients, True


def _plan_ddim(config, alphas_cumprod, n):
    if not 0 <= config["eta"] <= 1:
        raise ValueError(f"eta={config['eta']!r} must lie in 0..1 (0 is DDIM, 1 is DDPM)")
    timesteps = _spaced_timesteps(config, n, len(alphas_cumprod), whole=True).astype(int)
    signal = alphas_cumprod[timesteps].astype(np.float64)
    # Whatever the spacing, diffusers steps down by T // n, not to the next timestep in the list.
    previous_timesteps = timesteps - len(alphas_cumprod) // n
    final = 1.0 if config["set_alpha_to_one"] else alphas_cumprod[0]
    previous = np.where(previous_timesteps >= 0, alphas_cumprod[previous_timesteps], final)
    previous = previous.astype(np.float64)
    std = config["eta"] * np.sqrt((1 - previous) / (1 - signal) * (1 - signal / previous))
    coefficients = {
        "alpha_t": np.sqrt(signal),
        "sigma_t": np.sqrt(1 - signal),
        "clip_range": _clip_range(config, n),
        "x0_weight": np.sqrt(previous),
        "eps_weight": np.sqrt(np.maximum(1 - previous - std**2, 0)),
        "noise_std": std,
    }
    if config["use_clipped_model_output"]:
        coefficients["of_clipped"] = np.ones(n)
    return timesteps, _sigma(np.append(signal, previous[-1])), 1.0, coefficients, config["eta"] > 0


def _plan_euler(config, alphas_cumprod, n, ancestral=False):
    training_sigmas = _finite_training_sigmas(config, alphas_cumprod)
    num_train = len(training_sigmas)
    timesteps = _spaced_timesteps(config, n, num_train, whole=False)
    sigmas = np.interp(timesteps, np.arange(num_train), training_sigmas)
    if config.get("use_karras_sigmas"):
        sigmas = _karras_sigmas(config, sigmas[0], sigmas[-1], n)
        timesteps = _timesteps_of(sigmas, training_sigmas)
    last = training_sigmas[0] if config.get("final_sigmas_type") == "sigma_min" else 0
    sigmas = np.append(sigmas, last)
    # With leading spacing the first step is not at the end of training: the latents then are image
    # plus noise, which includes the image's unit variance.
    from_pure_noise = config["timestep_spacing"] != "leading"
    init_noise_sigma = sigmas.max() if from_pure_noise else np.sqrt(sigmas.max() ** 2 + 1)
    now, after = sigmas[:-1], sigmas[1:]
    alpha_t, sigma_t = _signal_and_noise(now)
    coefficients = {"alpha_t": alpha_t, "sigma_t": sigma_t, "sigma": now}
    if ancestral:
        coefficients["sigma_up"] = np.sqrt(after**2 * (now**2 - after**2) / now**2)
        after = after**2 / now  # sqrt(after^2 - sigma_up^2) without cancellation
    coefficients["sigma_down"] = after
    return timesteps, sigmas, init_noise_sigma, coefficients, ancestral


def _plan_dpmpp_2m(config, alphas_cumprod, n):
    training_sigmas = _finite_training_sigmas(config, alphas_cumprod)
    timesteps = _dpmpp_timesteps(config, training_sigmas, n)
    if config["use_karras_sigmas"]:
        sigmas = _karras_sigmas(config, float(training_sigmas[-1]), float(training_sigmas[0]), n)
        timesteps = _timesteps_of(sigmas, training_sigmas)
        if config["beta_schedule"] != "squaredcos_cap_v2":
            timesteps = timesteps.round()
        timesteps = timesteps.astype(int)
    else:
        sigmas = np.interp(timesteps, np.arange(len(training_sigmas)), training_sigmas)
    last = training_sigmas[0] if config["final_sigmas_type"] == "sigma_min" else 0
    sigmas = np.append(sigmas, last)
    n = len(timesteps)

    alpha, sigma = _signal_and_noise(sigmas)
    with np.errstate(divide="ignore"):
        lambdas = np.log(alpha) - np.log(sigma)
    h = np.diff(lambdas)
    first_order = np.arange(n) == 0
    first_order[-1] |= (
        config["final_sigmas_type"] == "zero"
        or config["euler_at_final"]
        or (config["lower_order_final"] and n < 15)
    )
    extrapolation = np.zeros(n)
    extrapolation[1:] = np.where(first_order[1:], 0, h[1:] / (2 * h[:-1]))
    coefficients = {
        "alpha_t": alpha[:-1],
        "sigma_t": sigma[:-1],
        "xt_weight": sigma[1:] / sigma[:-1],
        "data_weight": -alpha[1:] * np.expm1(-h),
        "extrapolation": extrapolation,  # 1 / (2 r) of the paper, 0 for a first-order step
    }
    return timesteps, sigmas, 1.0, coefficients, False


def _dpmpp_timesteps(config: dict, training_sigmas: np.ndarray, n: int) -> np.ndarray:
    """DPM-Solver's spacings: n + 1 timesteps without the last, from where lambda is not clipped."""
    num_train = len(training_sigmas)
    # lambda = -log(sigma) falls with t; the noisiest timesteps below the bound are left out.
    lambdas = -np.log(training_sigmas)
    end = num_train - int(np.searchsorted(lambdas[::-1], config["lambda_min_clipped"]))
    if config["timestep_spacing"] == "trailing":
        return np.arange(end, 0, -num_train / n)[:n].round().astype(int) - 1
    if end < n + 1:
        raise ValueError(
            f"num_inference_steps={n} with timestep_spacing={config['timestep_spacing']!r} needs "
            f"{n + 1} timesteps, but {end} are left; use fewer steps or 'trailing'"
        )
    if config["timestep_spacing"] == "linspace":
        return np.linspace(0, end - 1, n + 1).round()[:0:-1].astype(int)
    timesteps = np.arange(n + 1)[:0:-1] * (end // (n + 1)) + config["steps_offset"]
    return _within_training(timesteps, num_train)


def _k_sigmas(config: dict, alphas_cumprod: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """[n + 1] Karras sigmas over the whole schedule, then 0; the [T] log sigmas of training."""
    training = _finite_training_sigmas(config, alphas_cumprod)
    sigmas = _karras_sigmas(config, float(training[-1]), float(training[0]), n)
    return np.append(sigmas, 0.0), np.log(training)


def _k_plan(sigmas, log_training, coefficients, stochastic):
    """What both of k-diffusion's samplers have: whole timesteps, the nearest in log sigma."""
    now = sigmas[:-1]
    timesteps = np.abs(np.log(now)[:, None] - log_training).argmin(1)
    alpha_t, sigma_t = _signal_and_noise(now)
    coefficients |= {"alpha_t": alpha_t, "sigma_t": sigma_t}
    return timesteps, sigmas, sigmas[0], coefficients, stochastic


def _plan_k_dpmpp_2m(config, alphas_cumprod, n):
    sigmas, log_training = _k_sigmas(config, alphas_cumprod, n)
    with np.errstate(divide="ignore"):
        h = -np.diff(np.log(sigmas))
    extrapolation = np.zeros(n)
    extrapolation[1:] = h[1:] / (2 * h[:-1])
    extrapolation[-1] = 0  # to sigma 0 at first order
    coefficients = {
        "xt_weight": sigmas[1:] / sigmas[:-1],
        "data_weight": -np.expm1(-h),
        "extrapolation": extrapolation,
    }
    return _k_plan(sigmas, log_training, coefficients, False)


def _plan_k_dpmpp_sde(config, alphas_cumprod, n):
    """Two calls a step: from sigma to the middle in log sigma, and again to the next sigma."""
    whole, log_training = _k_sigmas(config, alphas_cumprod, n)
    start, after = whole[:-2], whole[1:-1]
    middle = np.sqrt(start * after)
    reached = np.stack([middle, after], axis=1).ravel()  # by each call but the last
    origin = np.repeat(start, 2)
    noise_std = np.sqrt(reached**2 * (origin**2 - reached**2) / origin**2)
    noise_std = np.append(np.minimum(reached, noise_std), 0.0)
    origin = np.append(origin, whole[-2])
    down = np.append(np.sqrt(reached**2 - noise_std[:-1] ** 2), 0.0)
    overlap = np.zeros_like(origin)
    # Both draws of a step are increments of one Brownian motion in sigma, from the same sigma on.
    overlap[1::2] = np.sqrt((start - middle) / (start - after))
    coefficients = {
        "xt_weight": down / origin,
        "data_weight": 1 - down / origin,
        "noise_std": noise_std,
        "from_start": (np.arange(len(origin)) % 2).astype(float),
        "overlap": overlap,
    }
    sigmas = np.append(np.stack([start, middle], axis=1).ravel(), whole[-2:])
    return _k_plan(sigmas, log_training, coefficients, True)


_PLANNERS: dict[str, Callable] = {
    "ddpm": _plan_ddpm,
    "ddim": _plan_ddim,
    "euler": _plan_euler,
    "euler_ancestral": functools.partial(_plan_euler, ancestral=True),
    "dpmpp_2m": _plan_dpmpp_2m,
    "k_dpmpp_2m": _plan_k_dpmpp_2m,
    "k_dpmpp_sde": _plan_k_dpmpp_sde,
}
