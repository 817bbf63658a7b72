"""Samplers: from Gaussian noise to latents, all in one compiled loop.

`make_plan` turns a diffusers scheduler_config.json into a `Plan`: every number the loop needs,
computed once on the host. `run_steps` then walks through it. The plan is data to the compiled
program: other timesteps, sigmas or eta do not recompile it.

    plan = make_plan(config, 30, "dpmpp_2m", use_karras_sigmas=True)
    carry = init_carry(plan, initial_latents(plan, noise))
    carry = run_steps(plan, model, carry, key, 0, plan.num_steps)
    latents = final_latents(carry)

SDXL-Lightning (2402.13929) in four steps: `make_plan(config, 4, "euler",
timestep_spacing="trailing")` with a model that applies no guidance.
"""

import dataclasses
import functools
import math
import warnings
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from persongen_jax.diffusion import (
    PREDICTION_TYPES,
    SCHEDULE_DEFAULTS,
    NoiseSchedule,
    check_choice,
    x0_and_eps,
)

# ---- What a configuration may say --------------------------------------------------------------

_COMMON = {**SCHEDULE_DEFAULTS, "steps_offset": 0}
_THRESHOLDING = {
    "thresholding": False,
    "dynamic_thresholding_ratio": 0.995,
    "sample_max_value": 1.0,
}
_CLIPPING = {"clip_sample": True, "clip_sample_range": 1.0}
_SIGMAS = {
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
    "final_sigmas_type": "zero",
}

# Each class's parameters with diffusers' defaults: switching class falls back to these.
DEFAULTS = {
    "ddpm": {
        **_COMMON,
        **_THRESHOLDING,
        **_CLIPPING,
        "timestep_spacing": "leading",
        "variance_type": "fixed_small",
    },
    "ddim": {
        **_COMMON,
        **_THRESHOLDING,
        **_CLIPPING,
        "timestep_spacing": "leading",
        "set_alpha_to_one": True,
        "eta": 0.0,  # an argument of diffusers' step(), not of its class
    },
    "euler": {
        **_COMMON,
        **_SIGMAS,
        "timestep_spacing": "linspace",
        "timestep_type": "discrete",
        "interpolation_type": "linear",
        "sigma_min": None,
        "sigma_max": None,
    },
    "euler_ancestral": {**_COMMON, "timestep_spacing": "linspace"},
    "dpmpp_2m": {
        **_COMMON,
        **_SIGMAS,
        **_THRESHOLDING,
        "timestep_spacing": "linspace",
        "solver_order": 2,
        "algorithm_type": "dpmsolver++",
        "solver_type": "midpoint",
        "lower_order_final": True,
        "euler_at_final": False,
        "use_lu_lambdas": False,
        "use_flow_sigmas": False,
        "flow_shift": 1.0,
        "lambda_min_clipped": -math.inf,
        "variance_type": None,
        "use_dynamic_shifting": False,
        "time_shift_type": "exponential",
        # Not of diffusers' class either, but taken over when switching from an Euler config.
        "sigma_min": None,
        "sigma_max": None,
    },
}

CLASS_NAMES = {
    "DDPMScheduler": "ddpm",
    "DDIMScheduler": "ddim",
    "EulerDiscreteScheduler": "euler",
    "EulerAncestralDiscreteScheduler": "euler_ancestral",
    "DPMSolverMultistepScheduler": "dpmpp_2m",
}

_SUPPORTED_VALUES = {
    "prediction_type": PREDICTION_TYPES,
    "timestep_spacing": ("leading", "trailing", "linspace"),
    "thresholding": (False, None),
    "variance_type": ("fixed_small", "fixed_small_log", "fixed_large", None),
    "interpolation_type": ("linear",),
    "timestep_type": ("discrete",),
    "final_sigmas_type": ("zero", "sigma_min"),
    "use_exponential_sigmas": (False, None),
    "use_beta_sigmas": (False, None),
    "use_lu_lambdas": (False, None),
    "use_flow_sigmas": (False, None),
    "use_dynamic_shifting": (False, None),
    "solver_order": (2,),
    # The second names are what sibling classes call theirs; diffusers maps them to the first.
    "algorithm_type": ("dpmsolver++", "deis"),
    "solver_type": ("midpoint", "logrho", "bh1", "bh2"),
}

# Parameters of diffusers' other schedulers, often left in a file whose class was switched.
_FOREIGN_KEYS = frozenset(
    "disable_corrector predict_x0 rho shift_terminal sigma_data sigma_schedule skip_prk_steps "
    "solver_p".split()
)


def resolve_config(
    scheduler_config: dict, scheduler: str | None = None, **overrides
) -> tuple[str, dict]:
    """Chooses the sampler and completes its parameters as diffusers' `from_config` does.

    Parameters that the chosen class shares with the config's are kept, those that belong to
    another class are dropped, missing ones take the chosen class's default.

    Returns:
      (short name, all parameters of that sampler).

    Raises:
      ValueError: unknown sampler, an override the sampler does not have, or an unsupported value.
    """
    asked = scheduler if scheduler is not None else scheduler_config.get("_class_name")
    name = CLASS_NAMES.get(asked, asked)
    if name not in DEFAULTS:
        raise ValueError(
            f"scheduler {asked!r} is not supported; use one of {', '.join(DEFAULTS)} "
            f"(or {', '.join(CLASS_NAMES)})"
        )
    defaults = DEFAULTS[name]
    for key in overrides:
        if key not in defaults:
            raise ValueError(
                f"{key}={overrides[key]!r}: sampler {name!r} has no such parameter; "
                f"it has {', '.join(sorted(defaults))}"
            )
    # diffusers marks values nobody chose; they must not win over the new class's defaults.
    unchosen = scheduler_config.get("_use_default_values", ())
    given = {
        k: v for k, v in scheduler_config.items() if k not in unchosen and not k.startswith("_")
    }
    known = _FOREIGN_KEYS.union(*DEFAULTS.values())
    if unknown := sorted(given.keys() - known):
        warnings.warn(
            f"scheduler config keys {unknown} belong to no known scheduler and are ignored; "
            "check their spelling",
            stacklevel=3,
        )
    config = defaults | {k: v for k, v in given.items() if k in defaults} | overrides
    for key, supported in _SUPPORTED_VALUES.items():
        if key in config:
            check_choice(key, config[key], supported)
    return name, config


# ---- The plan ----------------------------------------------------------------------------------


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """One sampling run, step by step. A pytree: arrays are leaves, the rest is static.

    Attributes:
      timesteps: [n] float32 in 0..T-1, what the model is told; falling.
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
    init_noise_sigma: np.ndarray
    coefficients: dict[str, np.ndarray]
    name: str = dataclasses.field(metadata={"static": True})
    prediction_type: str = dataclasses.field(metadata={"static": True})
    stochastic: bool = dataclasses.field(metadata={"static": True})

    @property
    def num_steps(self) -> int:
        """Number of steps; may be below the number asked for when `lambda_min_clipped` cuts."""
        return self.timesteps.shape[0]

    def at(self, i) -> dict[str, jax.Array]:
        """The coefficients of step i (may be traced)."""
        return {key: jnp.asarray(value)[i] for key, value in self.coefficients.items()}


def make_plan(
    scheduler_config: dict, num_inference_steps: int, scheduler: str | None = None, **overrides
) -> Plan:
    """Precomputes a sampling run in float64.

    Args:
      scheduler_config: contents of a diffusers scheduler_config.json.
      num_inference_steps: steps, at least 1.
      scheduler: short name ("ddpm", "ddim", "euler", "euler_ancestral", "dpmpp_2m") or diffusers
        class name; None takes the config's `_class_name`.
      **overrides: parameters that win over the config, e.g. use_karras_sigmas=True, eta=0.5.

    Raises:
      ValueError: see `resolve_config`; also step counts, eta or timesteps out of range, and an
        epsilon prediction asked for at zero terminal SNR.
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
    # plus noise, of which the image's unit variance is part.
    from_pure_noise = config["timestep_spacing"] != "leading"
    init_noise_sigma = sigmas.max() if from_pure_noise else np.sqrt(sigmas.max() ** 2 + 1)
    now, after = sigmas[:-1], sigmas[1:]
    alpha_t, sigma_t = _signal_and_noise(now)
    coefficients = {"alpha_t": alpha_t, "sigma_t": sigma_t, "sigma": now}
    if ancestral:
        coefficients["sigma_up"] = np.sqrt(after**2 * (now**2 - after**2) / now**2)
        after = after**2 / now  # sqrt(after^2 - sigma_up^2) without its cancellation
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


_PLANNERS = {
    "ddpm": _plan_ddpm,
    "ddim": _plan_ddim,
    "euler": _plan_euler,
    "euler_ancestral": functools.partial(_plan_euler, ancestral=True),
    "dpmpp_2m": _plan_dpmpp_2m,
}


# ---- The samplers ------------------------------------------------------------------------------
# Each: (model_output, plan, i, latents, memory, noise) -> (latents, memory), float32 throughout.


def ddpm_step(model_output, plan, i, latents, memory, noise):
    """Samples the posterior q(x_{t-1} | x_t, x_0) (Ho et al. 2006.11239, eq. 6 and 7)."""
    c = plan.at(i)
    x0, _ = x0_and_eps(plan.prediction_type, latents, model_output, c["alpha_t"], c["sigma_t"])
    x0 = jnp.clip(x0, -c["clip_range"], c["clip_range"])
    mean = c["x0_weight"] * x0 + c["xt_weight"] * latents
    return mean + c["noise_std"] * noise, memory


def ddim_step(model_output, plan, i, latents, memory, noise):
    """Predicted x_0, plus the direction to x_t, plus noise (Song et al. 2010.02502, eq. 12)."""
    c = plan.at(i)
    x0, eps = x0_and_eps(plan.prediction_type, latents, model_output, c["alpha_t"], c["sigma_t"])
    x0 = jnp.clip(x0, -c["clip_range"], c["clip_range"])
    latents = c["x0_weight"] * x0 + c["eps_weight"] * eps
    if plan.stochastic:
        latents = latents + c["noise_std"] * noise
    return latents, memory


def euler_step(model_output, plan, i, latents, memory, noise):
    """dx/dsigma = (x - D(x)) / sigma, one Euler step (Karras et al. 2206.00364, alg. 1)."""
    c = plan.at(i)
    denoised, _ = x0_and_eps(
        plan.prediction_type, latents * c["alpha_t"], model_output, c["alpha_t"], c["sigma_t"]
    )
    derivative = (latents - denoised) / c["sigma"]
    return latents + (c["sigma_down"] - c["sigma"]) * derivative, memory


def euler_ancestral_step(model_output, plan, i, latents, memory, noise):
    """An Euler step to below the next sigma, then noise back up to it (k-diffusion)."""
    latents, memory = euler_step(model_output, plan, i, latents, memory, noise)
    return latents + plan.at(i)["sigma_up"] * noise, memory


def dpmpp_2m_step(model_output, plan, i, latents, memory, noise):
    """Second-order multistep data prediction (Lu et al. 2211.01095, alg. 2).

    `memory` is (previous x0, 1 once there is one): a run that begins in the middle of a plan takes
    its first step at first order.
    """
    c = plan.at(i)
    x0, _ = x0_and_eps(plan.prediction_type, latents, model_output, c["alpha_t"], c["sigma_t"])
    previous_x0, has_previous = memory
    data = x0 + has_previous * c["extrapolation"] * (x0 - previous_x0)
    latents = c["xt_weight"] * latents + c["data_weight"] * data
    return latents, (x0, jnp.ones_like(has_previous))


SAMPLERS: dict[str, Callable] = {
    "ddpm": ddpm_step,
    "ddim": ddim_step,
    "euler": euler_step,
    "euler_ancestral": euler_ancestral_step,
    "dpmpp_2m": dpmpp_2m_step,
}


# ---- The loop ----------------------------------------------------------------------------------


def initial_latents(plan: Plan, noise: jax.Array) -> jax.Array:
    """[b, h, w, c] standard normal noise → [b, h, w, c] float32 latents at the first step."""
    return noise.astype(jnp.float32) * plan.init_noise_sigma


def init_carry(plan: Plan, latents: jax.Array) -> dict:
    """What the loop carries: the latents [b, h, w, c] and the sampler's memory, float32."""
    latents = jnp.asarray(latents, jnp.float32)
    memory = (jnp.zeros_like(latents), jnp.float32(0)) if plan.name == "dpmpp_2m" else ()
    return {"latents": latents, "memory": memory}


def final_latents(carry: dict) -> jax.Array:
    """[b, h, w, c] float32 latents after the steps run so far."""
    return carry["latents"]


def run_steps(
    plan: Plan,
    model: Callable,
    carry: dict,
    key: jax.Array | None,
    start,
    stop,
    noise: jax.Array | None = None,
) -> dict:
    """Runs steps start..stop-1 of the plan. Meant to be called inside `jax.jit`.

    Traced bounds let one compiled program run the plan in segments. With Python integers as bounds
    the loop can be differentiated in reverse.

    Args:
      plan: from `make_plan`, as an argument of the jitted function.
      model: (model_input [b, h, w, c] float32, timestep float32 scalar, step_index int32 scalar)
        → model output [b, h, w, c]. The input is already scaled to the model's variance.
      carry: from `init_carry`, or from the segment before.
      key: a random key, or one per example [b]; may be None if nothing is drawn. Step i of example
        j draws from fold_in(key_j, i), where a single key gives key_j = fold_in(key, j): padding
        the batch or splitting the run changes no image.
      start: first step.
      stop: end, exclusive; at most `plan.num_steps`.
      noise: optional [n, b, h, w, c], used instead of drawing.

    Raises:
      ValueError: a stochastic plan has neither key nor noise, or keys of another number.
    """
    step = SAMPLERS[plan.name]
    shape = carry["latents"].shape
    keys = None
    if plan.stochastic and noise is None:
        keys = _example_keys(plan, key, shape[0])

    def draw(i):
        if not plan.stochastic:
            return None
        if noise is not None:
            return jnp.asarray(noise, jnp.float32)[i]
        return jax.vmap(lambda k: jax.random.normal(jax.random.fold_in(k, i), shape[1:]))(keys)

    def body(i, carry):
        latents = carry["latents"]
        scaled = latents
        if plan.name in ("euler", "euler_ancestral"):
            # These carry x0 + sigma * eps; the model was trained on unit variance.
            scaled = latents * plan.at(i)["alpha_t"]
        output = model(scaled, jnp.asarray(plan.timesteps)[i], i).astype(jnp.float32)
        latents, memory = step(output, plan, i, latents, carry["memory"], draw(i))
        return {"latents": latents, "memory": memory}

    return jax.lax.fori_loop(start, stop, body, carry)


def _example_keys(plan: Plan, key: jax.Array | None, batch: int) -> jax.Array:
    """[batch] typed keys from one key or one per example, typed or raw uint32."""
    if key is None:
        raise ValueError(f"sampler {plan.name!r} draws noise here; pass a key or the noise")
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.wrap_key_data(key)
    if key.ndim == 0:
        return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(batch))
    if key.shape != (batch,):
        raise ValueError(f"key has shape {key.shape}; pass one key or {batch}, one per example")
    return key


def guide(
    noise_cond: jax.Array, noise_uncond: jax.Array, guidance_scale, guidance_rescale=0.0
) -> jax.Array:
    """Classifier-free guidance (Ho & Salimans 2207.12598) with rescale (2305.08891, section 3.4).

    Args:
      noise_cond: [b, h, w, c] model output with the condition.
      noise_uncond: [b, h, w, c] without.
      guidance_scale: scalar, may be traced; 1 is the conditional output.
      guidance_rescale: scalar in 0..1, may be traced; how far each example's standard deviation is
        pulled back to the conditional output's. 0 leaves the guided output as it is.

    Returns:
      [b, h, w, c] float32.
    """
    cond, uncond = noise_cond.astype(jnp.float32), noise_uncond.astype(jnp.float32)
    guided = uncond + guidance_scale * (cond - uncond)
    axes = tuple(range(1, guided.ndim))
    std_cond, std_guided = cond.std(axes, keepdims=True), guided.std(axes, keepdims=True)
    # A constant output has no contrast to rescale; without the guard it would turn into NaN.
    ratio = jnp.where(std_guided > 0, std_cond / jnp.where(std_guided > 0, std_guided, 1), 1)
    return guided * (1 + guidance_rescale * (ratio - 1))
