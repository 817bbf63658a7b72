"""The text-to-image pipeline against diffusers': same weights, same latents, same pictures."""

import subprocess
import sys

import jax
import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    StableDiffusionXLPipeline,
)
from diffusers.schedulers import scheduling_ddpm, scheduling_euler_ancestral_discrete

from persongen_jax import pipeline as pipeline_module
from persongen_jax.pipeline import Pipeline

PROMPTS = ["a man", "a photo of a woman in a red hat, a castle on the mountain behind her"]
STEPS = 20
PIXEL = 2 / 255  # what the issue asks for; float32 twins are far below it
TIGHT = 0.5 / 255
SCHEDULERS = {
    "euler": EulerDiscreteScheduler,
    "euler_ancestral": EulerAncestralDiscreteScheduler,
    "ddim": DDIMScheduler,
    "ddpm": DDPMScheduler,
    "dpmpp_2m": DPMSolverMultistepScheduler,
}


@pytest.fixture(scope="module")
def ours(tiny_base):
    return Pipeline.from_pretrained(tiny_base)


@pytest.fixture(scope="module")
def theirs(tiny_base):
    pipe = StableDiffusionXLPipeline.from_pretrained(tiny_base)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def latents():
    return np.random.default_rng(0).standard_normal((2, 8, 8, 4)).astype(np.float32)


def to_torch(latents):
    return torch.from_numpy(latents).permute(0, 3, 1, 2).contiguous()


def run_ours(pipe, latents, **settings):
    settings = {"num_inference_steps": STEPS, "guidance_scale": 5.0, **settings}
    return pipe(PROMPTS, latents=latents, output_type="np", **settings).images


def run_theirs(pipe, latents, **settings):
    settings = {"num_inference_steps": STEPS, "guidance_scale": 5.0, **settings}
    return pipe(PROMPTS, latents=to_torch(latents), output_type="np", **settings).images


def share_noise(monkeypatch, shape):
    """Make diffusers' stochastic schedulers draw what ours will draw from seed 0."""
    keys = pipeline_module._image_keys(0, 1, shape[0])
    step = iter(range(STEPS))

    def randn_tensor(*_, **__):
        i = next(step)
        draw = jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, i), shape[1:]))
        return to_torch(np.array(draw(keys)))

    for module in (scheduling_ddpm, scheduling_euler_ancestral_discrete):
        monkeypatch.setattr(module, "randn_tensor", randn_tensor)


@pytest.mark.parametrize("name", [*SCHEDULERS, "dpmpp_2m karras", "euler trailing"])
def test_same_pictures_as_diffusers(name, ours, theirs, latents, monkeypatch):
    name, _, option = name.partition(" ")
    options = {
        "": {},
        "karras": {"use_karras_sigmas": True},
        "trailing": {"timestep_spacing": "trailing"},
    }[option]
    share_noise(monkeypatch, latents.shape)
    base = EulerDiscreteScheduler.from_config(ours.base.scheduler_config)
    monkeypatch.setattr(theirs, "scheduler", SCHEDULERS[name].from_config(base.config, **options))
    wanted = run_theirs(theirs, latents)
    found = run_ours(ours, latents, scheduler=name, scheduler_options=options)
    assert wanted.std() > 0.05  # pictures with something in them
    difference = np.abs(found - wanted).max()
    assert difference < PIXEL
    assert difference < TIGHT


@pytest.mark.parametrize(
    "settings",
    [
        {"negative_prompt": ["lowres, blurry", "a man"]},
        {"guidance_scale": 1.0},
        {"guidance_rescale": 0.7},
        {"height": 80, "width": 48, "crops_coords_top_left": (3, 5), "original_size": (90, 70)},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_same_pictures_with_other_settings(settings, ours, theirs, latents):
    if "height" in settings:
        latents = np.random.default_rng(1).standard_normal((2, 10, 6, 4)).astype(np.float32)
    wanted = run_theirs(theirs, latents, **settings)
    assert np.abs(run_ours(ours, latents, **settings) - wanted).max() < TIGHT


def test_lightning_setting(ours, theirs, latents, monkeypatch):
    """SDXL-Lightning: four Euler steps, trailing, no guidance."""
    scheduler = EulerDiscreteScheduler.from_config(
        ours.base.scheduler_config, timestep_spacing="trailing"
    )
    monkeypatch.setattr(theirs, "scheduler", scheduler)
    settings = {"num_inference_steps": 4, "guidance_scale": 0.0}
    options = {"scheduler": "euler", "scheduler_options": {"timestep_spacing": "trailing"}}
    found = run_ours(ours, latents, **settings, **options)
    assert np.abs(found - run_theirs(theirs, latents, **settings)).max() < TIGHT


def test_other_prompts_seeds_and_scales_compile_nothing(ours):
    settings = {"num_inference_steps": 3, "output_type": "np", "batch_size": 2}
    first = ours(PROMPTS, seed=1, guidance_scale=5.0, **settings).images
    functions = (
        pipeline_module._sample,
        pipeline_module._encode_prompt,
        pipeline_module._decode,
    )
    compiled = [function._cache_size() for function in functions]
    second = ours(
        ["x", "y", "a much longer prompt"], "blurry", seed=2, guidance_scale=7.5, **settings
    )
    third = ours(PROMPTS, seed=1, guidance_scale=5.0, guidance_rescale=0.5, **settings).images
    assert [function._cache_size() for function in functions] == compiled
    assert second.images.shape[0] == 3
    assert not np.allclose(first, third)


def test_a_picture_does_not_depend_on_its_batch(ours):
    settings = {"num_inference_steps": 3, "output_type": "np", "scheduler": "euler_ancestral"}
    prompts = ["a", "b", "c"]
    alone = ours(prompts, batch_size=1, **settings).images
    together = ours(prompts, batch_size=2, **settings).images
    assert np.abs(alone - together).max() < TIGHT
    assert np.array_equal(together, ours(prompts, batch_size=2, **settings).images)


def test_progress_counts_every_step_and_changes_nothing(ours, latents):
    done = []
    settings = {"num_inference_steps": 5, "scheduler": "dpmpp_2m"}
    watched = run_ours(ours, latents, progress=done.append, **settings)
    assert sum(done) == 5 and len(done) > 1
    assert np.abs(watched - run_ours(ours, latents, **settings)).max() < TIGHT


def test_output_types_and_numbering(ours):
    settings = {"num_inference_steps": 1, "num_images_per_prompt": 2, "seed": 3}
    pil = ours(PROMPTS, **settings).images
    arrays = ours(PROMPTS, output_type="np", **settings).images
    assert len(pil) == 4 and pil[0].size == (64, 64)
    assert np.array_equal(np.asarray(pil[3]), (arrays[3] * 255).round().astype(np.uint8))
    assert ours("a", num_inference_steps=1, output_type="latent").images.shape == (1, 8, 8, 4)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"height": 60}, "height=60"),
        ({"scheduler": "heun"}, "heun"),
        ({"scheduler_options": {"eta": 0.5}}, "eta"),
        ({"output_type": "jpeg"}, "jpeg"),
        ({"latents": np.zeros((1, 4, 4, 4))}, r"\(1, 4, 4, 4\)"),
        ({"negative_prompt": ["a", "b", "c"]}, "3 negative prompts for 2"),
        ({"references": [[np.zeros((8, 8, 3), np.uint8)]] * 2}, "load_method"),
        ({"batch_size": 0}, "batch_size=0"),
    ],
)
def test_bad_arguments_are_named(settings, named, ours):
    with pytest.raises(ValueError, match=named):
        ours(PROMPTS, **settings)


EIGHT_DEVICES = """
import sys
import jax, numpy as np
from persongen_jax.pipeline import Pipeline
from persongen_jax.sharding import make_mesh
assert jax.device_count() == 8
out = []
for mesh in (make_mesh(), make_mesh(jax.devices()[:1])):
    pipe = Pipeline.from_pretrained(sys.argv[1], mesh=mesh)
    prompts = [f"prompt {i}" for i in range(11)]
    out.append(pipe(prompts, num_inference_steps=3, output_type="np").images)
assert out[0].shape == (11, 64, 64, 3)
print(np.abs(out[0] - out[1]).max())
"""


def test_prompts_are_dealt_out_over_eight_devices(tiny_base, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
    run = subprocess.run(
        [sys.executable, "-c", EIGHT_DEVICES, str(tiny_base)], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr[-2000:]
    assert float(run.stdout) < TIGHT
