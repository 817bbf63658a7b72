"""What a scheduler_config.json may say: defaults, shared keys, settings that are refused."""

import inspect
import warnings

import diffusers
import numpy as np
import pytest
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers

from persongen_jax.diffusion import (
    plan as sampling_plan,
)
from persongen_jax.diffusion import (
    scheduler_config as sampling_config,
)
from tests.diffusion.schedulers import CLASSES, SDXL


@pytest.mark.parametrize("name", CLASSES)
def test_defaults_are_those_of_diffusers(name):
    parameters = inspect.signature(CLASSES[name].__init__).parameters
    expected = {key: p.default for key, p in parameters.items() if key != "self"}
    ours = dict(sampling_config.DEFAULTS[name])
    of_step = ["eta", "use_clipped_model_output"]
    for key in {"ddim": of_step, "dpmpp_2m": ["sigma_min", "sigma_max"]}.get(name, ()):
        del ours[key]
    assert ours == expected


def test_switching_class_keeps_shared_parameters():
    name, config = sampling_config.resolve_config(SDXL)
    assert name == "euler" and config["timestep_spacing"] == "leading"
    # clip_sample is not a parameter of Euler, but its config keeps it for classes that have it.
    name, config = sampling_config.resolve_config(SDXL, "DDIMScheduler")
    assert name == "ddim" and config["clip_sample"] is False and config["steps_offset"] == 1
    # A default that nobody chose yields to the new class's; an override takes precedence over all.
    unchosen = dict(diffusers.EulerDiscreteScheduler(beta_end=0.012).config)
    name, config = sampling_config.resolve_config(unchosen, "ddpm", beta_start=0.001)
    assert (config["timestep_spacing"], config["beta_end"], config["beta_start"]) == (
        diffusers.DDPMScheduler.from_config(unchosen).config.timestep_spacing,
        0.012,
        0.001,
    )


def test_karras_range_survives_the_switch_from_euler():
    config = SDXL | {"sigma_min": 0.05, "sigma_max": 9.0, "use_karras_sigmas": True}
    plan = sampling_plan.make_plan(config, 10, "dpmpp_2m")
    scheduler = diffusers.DPMSolverMultistepScheduler.from_config(config)
    scheduler.set_timesteps(10)
    np.testing.assert_allclose(plan.sigmas, scheduler.sigmas, rtol=1e-5)


def test_no_warning_for_keys_of_other_diffusers_schedulers():
    keys = set()
    for scheduler in KarrasDiffusionSchedulers:
        init = getattr(diffusers, scheduler.name).__init__
        keys |= inspect.signature(init).parameters.keys() - {"self", "args", "kwargs"}
    foreign = {key: True for key in keys - sampling_config.DEFAULTS["euler_ancestral"].keys()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sampling_plan.make_plan(SDXL | foreign, 5, "euler_ancestral")
    with pytest.warns(UserWarning, match="beta_shedule"):
        sampling_plan.make_plan(SDXL | {"beta_shedule": "linear"}, 5)


@pytest.mark.parametrize(
    "arguments, match",
    [
        ({"scheduler": "heun"}, "scheduler 'heun'.*dpmpp_2m.*EulerDiscreteScheduler"),
        ({"scheduler": "ddim", "thresholding": True}, "thresholding=True"),
        ({"scheduler": "dpmpp_2m", "solver_order": 3}, "solver_order=3"),
        ({"scheduler": "dpmpp_2m", "solver_type": "heun"}, "solver_type='heun'.*'midpoint'"),
        ({"scheduler": "dpmpp_2m", "algorithm_type": "sde-dpmsolver++"}, "sde-dpmsolver"),
        ({"scheduler": "dpmpp_2m", "use_lu_lambdas": True}, "use_lu_lambdas=True"),
        ({"scheduler": "dpmpp_2m", "use_flow_sigmas": True}, "use_flow_sigmas=True"),
        ({"scheduler": "dpmpp_2m", "variance_type": "learned"}, "variance_type='learned'"),
        ({"scheduler": "ddpm", "variance_type": "learned_range"}, "variance_type='learned_range'"),
        ({"scheduler": "ddpm", "beta_schedule": "sigmoid"}, "beta_schedule='sigmoid'"),
        ({"use_exponential_sigmas": True}, "use_exponential_sigmas=True"),
        ({"use_beta_sigmas": True}, "use_beta_sigmas=True"),
        ({"interpolation_type": "log_linear"}, "interpolation_type='log_linear'"),
        ({"timestep_type": "continuous"}, "timestep_type='continuous'"),
        ({"timestep_spacing": "cosine"}, "timestep_spacing='cosine'.*'trailing'"),
        ({"prediction_type": "flow_prediction"}, "prediction_type='flow_prediction'"),
        ({"eta": 0.5}, "eta=0.5.*'euler' has no such parameter"),
        ({"scheduler": "euler_ancestral", "use_karras_sigmas": True}, "no such parameter"),
        ({"scheduler": "ddim", "eta": 1.5}, "eta=1.5"),
        ({"num_inference_steps": 0}, "num_inference_steps=0"),
        ({"num_inference_steps": 1001}, r"num_inference_steps=1001 must lie in 1\.\.1000"),
        ({"num_inference_steps": 1000}, "first timestep is 1000.*steps_offset"),
        ({"scheduler": "dpmpp_2m", "num_inference_steps": 1000}, "needs 1001 timesteps"),
        (
            {
                "scheduler": "ddim",
                "timestep_spacing": "trailing",
                "rescale_betas_zero_snr": True,
            },
            "zero terminal SNR.*v_prediction",
        ),
    ],
)
def test_unsupported_settings_are_named(arguments, match):
    with pytest.raises(ValueError, match=match):
        sampling_plan.make_plan(SDXL, **({"num_inference_steps": 10} | arguments))


def test_unsupported_values_in_the_file_are_named_too():
    with pytest.raises(ValueError, match="use_beta_sigmas=True"):
        sampling_plan.make_plan(SDXL | {"use_beta_sigmas": True}, 10)
    with pytest.raises(ValueError, match="scheduler None"):
        sampling_plan.make_plan({}, 10)
