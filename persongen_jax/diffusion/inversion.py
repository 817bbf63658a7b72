"""DDIM in reverse: from an image to the noise that generates it.

Song et al., arXiv 2010.02502, section 4.3: without added noise the sampler is an ordinary
differential equation, which can be solved in either direction. The numbers match diffusers'
DDIMInverseScheduler.
"""

from typing import Any

import numpy as np

from persongen_jax.diffusion.plan import Plan
from persongen_jax.diffusion.schedule import NoiseSchedule
from persongen_jax.diffusion.scheduler_config import resolve_config


def make_inverse_plan(scheduler_config: dict, num_inference_steps: int, **overrides: Any) -> Plan:
    """A plan for ``samplers.run_steps`` that starts from the image and ends with noise.

    ``make_plan(scheduler_config, num_inference_steps, "ddim")`` leads back, the more exactly the
    smaller the steps are. If the last timestep leaves hardly any signal, that plan has to clip the
    image (with ``use_clipped_model_output``), or the model's smallest error there ruins it.

    Args:
        scheduler_config: contents of a diffusers scheduler_config.json.
        num_inference_steps: steps.
        **overrides: parameters of DDIM that win over the config.

    Raises:
        ValueError: "linspace" spacing, a number of steps out of range, or see ``resolve_config``.
    """
    overrides = {"clip_sample": False, **overrides}
    _, config = resolve_config(scheduler_config, "ddim", **overrides)
    schedule = NoiseSchedule.from_config(config)
    total, n = schedule.num_train_timesteps, num_inference_steps
    if not 1 <= n <= total:
        raise ValueError(f"num_inference_steps={n} must lie in 1..{total} (num_train_timesteps)")
    if config["timestep_spacing"] == "leading":
        timesteps = np.arange(n) * (total // n) + config["steps_offset"]
    elif config["timestep_spacing"] == "trailing":
        timesteps = np.arange(total, 0, -total / n)[:n][::-1].round().astype(int) - 1
    else:
        raise ValueError(
            "timestep_spacing='linspace' cannot be inverted; use 'leading' or 'trailing'"
        )
    if timesteps[-1] >= total:
        raise ValueError(f"the last timestep is {timesteps[-1]}, of {total}; lower steps_offset")
    # The noise level at which a step begins is one stride below the timestep that the model
    # receives, and the level at which it ends is that timestep's.
    before = timesteps - total // n
    first = 1.0 if config["set_alpha_to_one"] else schedule.alphas_cumprod[0]
    signal = np.where(before >= 0, schedule.alphas_cumprod[before], first).astype(np.float64)
    after = schedule.alphas_cumprod[timesteps].astype(np.float64)
    clip = config["clip_sample_range"] if config["clip_sample"] else np.inf
    coefficients = {
        "alpha_t": np.sqrt(signal),
        "sigma_t": np.sqrt(1 - signal),
        "clip_range": np.full(n, clip),
        "x0_weight": np.sqrt(after),
        "eps_weight": np.sqrt(1 - after),
        "noise_std": np.zeros(n),
    }
    ratios = np.sqrt((1 - np.append(signal[:1], after)) / np.append(signal[:1], after))
    return Plan(
        timesteps=timesteps.astype(np.float32),
        sigmas=ratios.astype(np.float32),
        init_noise_sigma=np.float32(1),
        coefficients={name: value.astype(np.float32) for name, value in coefficients.items()},
        name="ddim",
        prediction_type=config["prediction_type"],
        stochastic=False,
    )
