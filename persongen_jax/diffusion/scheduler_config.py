"""What a diffusers scheduler_config.json may say: checked, and completed for one of our samplers.

Two things in it say how a model was trained: its noise schedule (betas) and what it predicts. Which
sampler follows that schedule is a separate question, and any of ours can. A class of another
parametrisation (EDM, flow matching) has no betas at all.

Switching the scheduler keeps what both know and takes the rest from the new one's defaults, as
diffusers' ``from_config`` does.
"""

import math
import re
import warnings
from collections.abc import Container
from typing import Any

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")

# What diffusers' schedulers assume for keys that a scheduler_config.json leaves out.
SCHEDULE_DEFAULTS = {
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "trained_betas": None,
    "rescale_betas_zero_snr": False,
    "prediction_type": "epsilon",
}

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
        # Arguments of diffusers' step(), not of its class.
        "eta": 0.0,
        "use_clipped_model_output": False,
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
        # Not of diffusers' class either, but kept when switching from an Euler config.
        "sigma_min": None,
        "sigma_max": None,
    },
    # k-diffusion's samplers have no class in diffusers, and always Karras' sigmas.
    "k_dpmpp_2m": {**SCHEDULE_DEFAULTS, "sigma_min": None, "sigma_max": None},
    "k_dpmpp_sde": {**SCHEDULE_DEFAULTS, "sigma_min": None, "sigma_max": None},
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
    # The second names are those of sibling classes; diffusers maps them to the first.
    "algorithm_type": ("dpmsolver++", "deis"),
    "solver_type": ("midpoint", "logrho", "bh1", "bh2"),
}

# Parameters of diffusers' other schedulers, often left in a file after a change of class.
_FOREIGN_KEYS = frozenset(
    "disable_corrector predict_x0 rho shift_terminal sigma_data sigma_schedule skip_prk_steps "
    "solver_p".split()
)

# Classes whose betas mean what ours mean, but whose sampler is not here.
OTHER_SAMPLERS = frozenset(
    name + "Scheduler"
    for name in (
        "DDIMInverse DDIMParallel DDPMParallel DEISMultistep DPMSolverMultistepInverse "
        "DPMSolverSDE DPMSolverSinglestep HeunDiscrete KDPM2AncestralDiscrete KDPM2Discrete LCM "
        "LMSDiscrete PNDM SASolver TCD UniPCMultistep"
    ).split()
)

OURS = frozenset(
    name + "Scheduler"
    for name in "DDPM DDIM EulerDiscrete EulerAncestralDiscrete DPMSolverMultistep".split()
)
# Part of a class's name -> the parametrisation that it implies.
_OTHER_MODELS = {
    "EDM": "EDM's (preconditioned by sigma_data)",
    "CosineDPMSolver": "EDM's (preconditioned by sigma_data)",
    "KarrasVe": "EDM's (preconditioned by sigma_data)",
    "FlowM": "flow matching",
    "PiFlow": "flow matching",
    "ScoreSde": "a score SDE",
    "CMStochastic": "a consistency model's",
    "IPNDM": "IPNDM's, without betas",
}

# Numeric keys: (smallest, largest) sensible value.
_NUMBERS: dict[str, tuple[float, float]] = {
    "beta_start": (0, 1),
    "beta_end": (0, 1),
    "sigma_min": (0, math.inf),
    "sigma_max": (0, math.inf),
    "clip_sample_range": (0, math.inf),
    "sample_max_value": (0, math.inf),
    "dynamic_thresholding_ratio": (0, 1),
    "flow_shift": (-math.inf, math.inf),
    "lambda_min_clipped": (-math.inf, math.inf),
    "eta": (-math.inf, math.inf),  # make_plan checks the range
}
# More timesteps than any model has would only use memory.
_WHOLE: dict[str, tuple[float, float]] = {
    "num_train_timesteps": (1, 100_000),
    "steps_offset": (0, 100_000),
}
_FLAGS = frozenset(
    "rescale_betas_zero_snr use_karras_sigmas use_exponential_sigmas use_beta_sigmas clip_sample "
    "set_alpha_to_one thresholding lower_order_final euler_at_final use_lu_lambdas "
    "use_flow_sigmas use_dynamic_shifting use_clipped_model_output".split()
)
_CHOICES = frozenset(
    "beta_schedule prediction_type timestep_spacing interpolation_type timestep_type "
    "final_sigmas_type solver_order algorithm_type solver_type".split()
)
# Where diffusers has no use for null, it means that the key was left out. A flag that is null stays
# as it is: it means no.
_NULL_IS_ABSENT = frozenset(_NUMBERS) | frozenset(_WHOLE) | _CHOICES


def resolve_config(
    scheduler_config: dict, scheduler: str | None = None, **overrides
) -> tuple[str, dict]:
    """Chooses the sampler and completes its parameters as diffusers' `from_config` does.

    Parameters that the chosen class shares with the config's are kept, those that belong to
    another class are dropped, missing ones take the chosen class's default.

    Returns:
      (short name, all parameters of that sampler).

    Raises:
      ValueError: unknown sampler, an override the sampler does not have, an unsupported value, or
        a model of another parametrisation.
    """
    check_parametrisation(scheduler_config)
    asked: Any = scheduler if scheduler is not None else scheduler_config.get("_class_name")
    name = CLASS_NAMES.get(asked, asked)
    if name not in DEFAULTS:
        own = scheduler is None and asked in OTHER_SAMPLERS
        raise ValueError(
            f"scheduler {asked!r} is not supported"
            + (", but its noise schedule is" if own else "")
            + f"; use one of {', '.join(DEFAULTS)} (or {', '.join(CLASS_NAMES)}): in generate "
            "--scheduler NAME, in training --config.validation_scheduler=NAME"
        )
    defaults = DEFAULTS[name]
    for key in overrides:
        if key not in defaults:
            raise ValueError(
                f"{key}={overrides[key]!r}: sampler {name!r} has no such parameter; "
                f"it has {', '.join(sorted(defaults))}"
            )
    # diffusers marks values that nobody chose; they must not override the new class's defaults.
    left = default_keys(scheduler_config)
    given = {k: v for k, v in scheduler_config.items() if k not in left and not k.startswith("_")}
    known = _FOREIGN_KEYS.union(*DEFAULTS.values())
    if unknown := sorted(given.keys() - known):
        warnings.warn(
            f"scheduler config keys {unknown} belong to no known scheduler and are ignored; "
            "check their spelling",
            stacklevel=3,
        )
    config = defaults | checked_values(given, defaults) | checked_values(overrides, defaults)
    for key, supported in _SUPPORTED_VALUES.items():
        if key in config:
            check_choice(key, config[key], supported)
    return name, config


def with_zero_snr(scheduler_config: dict) -> dict:
    """The config with a noise schedule that ends without signal, sampled from its end.

    Lin et al., arXiv 2305.08891: sections 3.1 (the schedule) and 3.3 (``trailing`` timesteps).

    Raises:
        ValueError: the model predicts noise, from which nothing follows where all is noise.
    """
    if (scheduler_config.get("prediction_type") or "epsilon") == "epsilon":
        raise ValueError(
            "config.zero_snr=True: the model predicts noise, which says nothing about the image "
            "where all is noise; train it to predict v: --config.prediction_type=v_prediction"
        )
    return replaced(
        scheduler_config, {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    )


def replaced(scheduler_config: dict, values: dict) -> dict:
    """The config with other values, which count as chosen."""
    config = {**scheduler_config, **values}
    if isinstance(config.get("_use_default_values"), list):
        left = [key for key in config["_use_default_values"] if key not in values]
        config["_use_default_values"] = left
    return config


def scheduler_of_run(config: Any, scheduler_config: dict) -> dict:
    """A base's scheduler config as a run trains on it.

    Args:
        config: of the run; ``prediction_type`` and ``zero_snr`` are read, where it has them.

    Raises:
        ValueError: see :func:`with_zero_snr`.
    """
    if asked := config.get("prediction_type", ""):
        check_choice("config.prediction_type", asked, PREDICTION_TYPES)
        scheduler_config = replaced(scheduler_config, {"prediction_type": asked})
    return with_zero_snr(scheduler_config) if config.get("zero_snr") else scheduler_config


def check_parametrisation(config: dict) -> None:
    """ValueError if no sampler and no training code here supports the config's model."""
    name = config.get("_class_name")
    if name is not None and not isinstance(name, str):
        raise ValueError(
            f"scheduler config: _class_name={name!r} is not a string; use a class name"
        )
    for part, what in _OTHER_MODELS.items():
        if name and part in name:
            raise ValueError(_refusal(f"its class {name} is {what}"))
    if name and name not in OURS | OTHER_SAMPLERS:
        raise ValueError(
            f"scheduler config: the class {name} is unknown, and so is whether its models are "
            "trained on a schedule of betas; if this one is, set EulerDiscreteScheduler"
        )
    chosen = {key for key, value in config.items() if value is not None} - set(default_keys(config))
    if "sigma_data" in chosen and config["sigma_data"] is not True:
        raise ValueError(_refusal(f"sigma_data={config['sigma_data']!r} is EDM's"))
    for key in ("shift", "snr_shift_scale"):
        if key in chosen and config[key] not in (1, False):
            raise ValueError(_refusal(f"{key}={config[key]!r} moves its noise schedule"))
    if config.get("timestep_type") == "continuous":
        raise ValueError(_refusal("timestep_type='continuous' is EDM's"))
    flow = config.get("use_flow_sigmas") is True and re.search("Solver|UniPC|DEIS", name or "")
    if flow or config.get("prediction_type") == "flow_prediction":
        key = "use_flow_sigmas=True" if flow else "prediction_type='flow_prediction'"
        raise ValueError(_refusal(f"{key} is flow matching"))


def _refusal(what: str) -> str:
    return (
        f"scheduler config: the model was trained in another parametrisation ({what}), which is "
        "not supported with any sampler, nor in training; use a model that predicts epsilon, "
        "v_prediction or sample on a schedule of betas"
    )


def default_keys(config: dict) -> tuple:
    """Keys whose value nobody chose, as diffusers marks them."""
    marked = config.get("_use_default_values")
    if marked is None:
        return ()
    if not isinstance(marked, (list, tuple)) or not all(isinstance(k, str) for k in marked):
        raise ValueError(f"scheduler config: _use_default_values={marked!r} is not a list of names")
    return tuple(marked)


def checked_values(config: dict, keys: Container[str]) -> dict:
    """The entries of ``config`` among ``keys`` that have a value, each checked for its type.

    Raises:
        ValueError: a value of another type or outside its range.
    """
    given = {k: v for k, v in config.items() if k in keys}
    given = {k: v for k, v in given.items() if v is not None or k not in _NULL_IS_ABSENT}
    return {key: _checked(key, value) for key, value in given.items()}


def _checked(key: str, value):
    if key in _FLAGS and not (value is None or isinstance(value, bool)):
        raise ValueError(f"scheduler config: {key}={value!r} must be true or false")
    if key in _WHOLE:
        low, high = _WHOLE[key]
        if not _is_number(value) or value != math.floor(value) or not low <= value <= high:
            what = f"a whole number from {low} to {high}"
            raise ValueError(f"scheduler config: {key}={value!r} must be {what}")
        return int(value)
    if key in _NUMBERS and value is not None:
        low, high = _NUMBERS[key]
        if not _is_number(value, endless=key == "lambda_min_clipped") or not low <= value <= high:
            range_ = "" if math.isinf(low) else f" from {low} to {high:g}"
            raise ValueError(
                f"scheduler config: {key}={value!r} must be a number{range_}"
                + ("; remove the quotation marks" if isinstance(value, str) else "")
            )
    if key == "trained_betas" and value is not None:
        many = hasattr(value, "__iter__") and not isinstance(value, str)
        listed: list[Any] = list(value) if many else [""]
        if not all(_is_number(x) and 0 <= x < 1 for x in listed):
            raise ValueError("scheduler config: trained_betas must be a list of numbers in 0..1")
    return value


def _is_number(value, endless: bool = False) -> bool:
    if isinstance(value, (bool, str)) or not hasattr(value, "__float__"):
        return False
    return not math.isnan(value) and (endless or math.isfinite(value))


def check_choice(key: str, value: object, supported: tuple) -> None:
    """Raises ValueError naming key, value and the supported values if value is not among them."""
    if value not in supported:
        listed = ", ".join(repr(s) for s in supported)
        raise ValueError(f"{key}={value!r} is not supported; use one of {listed}")
