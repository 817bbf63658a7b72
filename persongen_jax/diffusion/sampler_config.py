"""The sampler's options: scheduler_config.json's keys, checked and completed.

Switching the scheduler keeps what both know and takes the rest from the new one's defaults, as
diffusers' ``from_config`` does.
"""

import math
import warnings
from typing import Any

from persongen_jax.diffusion.schedule import PREDICTION_TYPES, SCHEDULE_DEFAULTS, check_choice
from persongen_jax.diffusion.scheduler_file import (
    OTHER_SAMPLERS,
    check_parametrisation,
    unchosen,
    values,
)

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


def resolve_config(
    scheduler_config: dict, scheduler: str | None = None, **overrides: Any
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
    left = unchosen(scheduler_config)
    given = {k: v for k, v in scheduler_config.items() if k not in left and not k.startswith("_")}
    known = _FOREIGN_KEYS.union(*DEFAULTS.values())
    if unknown := sorted(given.keys() - known):
        warnings.warn(
            f"scheduler config keys {unknown} belong to no known scheduler and are ignored; "
            "check their spelling",
            stacklevel=3,
        )
    config = defaults | values(given, defaults) | values(overrides, defaults)
    for key, supported in _SUPPORTED_VALUES.items():
        if key in config:
            check_choice(key, config[key], supported)
    return name, config
