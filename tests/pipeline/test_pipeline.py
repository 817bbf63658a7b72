"""The text-to-image pipeline against diffusers: same weights, same latents, same images."""

import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from persongen_jax.diffusion.samplers import image_keys
from persongen_jax.pipeline import Pipeline, conditioner, images
from persongen_jax.pipeline.images import sample_steps
from tests.pipeline.pictures import (
    PIXEL,
    PROMPTS,
    STEPS,
    TIGHT,
    opened_when_called,
    run_ours,
    run_theirs,
    to_torch,
)

SCHEDULERS = {
    "euler": "EulerDiscreteScheduler",
    "euler_ancestral": "EulerAncestralDiscreteScheduler",
    "ddim": "DDIMScheduler",
    "ddpm": "DDPMScheduler",
    "dpmpp_2m": "DPMSolverMultistepScheduler",
}


def scheduler_of_diffusers(base, name, **options):
    import diffusers

    euler = diffusers.EulerDiscreteScheduler.from_config(base.scheduler_config)
    return getattr(diffusers, SCHEDULERS[name]).from_config(euler.config, **options)


@pytest.fixture(scope="module")
def ours(small_base):
    return Pipeline.from_pretrained(small_base)


@pytest.fixture(scope="module")
def theirs(small_base):
    return opened_when_called(small_base)


def share_noise(monkeypatch, shape):
    """Make diffusers' stochastic schedulers draw what ours will draw from seed 0."""
    from diffusers.schedulers import scheduling_ddpm, scheduling_euler_ancestral_discrete

    keys = image_keys(0, 1, shape[0])
    step = iter(range(STEPS))

    def randn_tensor(*_, **__):
        i = next(step)
        draw = jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, i), shape[1:]))
        return to_torch(np.array(draw(keys)))

    for module in (scheduling_ddpm, scheduling_euler_ancestral_discrete):
        monkeypatch.setattr(module, "randn_tensor", randn_tensor)


@pytest.mark.parametrize("name", [*SCHEDULERS, "dpmpp_2m karras", "euler trailing"])
def test_same_pictures_as_diffusers(name, ours, theirs, latents, golden, monkeypatch):
    name, _, option = name.partition(" ")
    options = {
        "": {},
        "karras": {"use_karras_sigmas": True},
        "trailing": {"timestep_spacing": "trailing"},
    }[option]

    def of_diffusers():
        share_noise(monkeypatch, latents.shape)
        scheduler = scheduler_of_diffusers(ours.base, name, **options)
        monkeypatch.setattr(theirs(), "scheduler", scheduler)
        return run_theirs(theirs(), latents)

    wanted = golden(of_diffusers)
    found = run_ours(ours, latents, scheduler=name, scheduler_options=options)
    assert wanted.std() > 0.05  # images with some content
    difference = np.abs(found - wanted).max()
    assert difference < PIXEL
    assert difference < TIGHT


@pytest.mark.parametrize(
    "settings",
    [
        {"negative_prompt": ["lowres, blurry", "a man"]},
        {"guidance_rescale": 0.7},
        {"height": 80, "width": 48, "crops_coords_top_left": (3, 5), "original_size": (90, 70)},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_same_pictures_with_other_settings(settings, ours, theirs, latents, golden):
    if "height" in settings:
        latents = np.random.default_rng(1).standard_normal((2, 10, 6, 4)).astype(np.float32)
    wanted = golden(lambda: run_theirs(theirs(), latents, **settings))
    assert np.abs(run_ours(ours, latents, **settings) - wanted).max() < TIGHT


def test_lightning_setting(ours, theirs, latents, golden, monkeypatch):
    """SDXL-Lightning: four Euler steps, trailing, and no guidance, which is another program."""
    settings = {"num_inference_steps": 4, "guidance_scale": 0.0}

    def of_diffusers():
        scheduler = scheduler_of_diffusers(ours.base, "euler", timestep_spacing="trailing")
        monkeypatch.setattr(theirs(), "scheduler", scheduler)
        return run_theirs(theirs(), latents, **settings)

    options = {"scheduler": "euler", "scheduler_options": {"timestep_spacing": "trailing"}}
    found = run_ours(ours, latents, **settings, **options)
    assert np.abs(found - golden(of_diffusers)).max() < TIGHT


def test_other_prompts_seeds_and_scales_compile_nothing(ours):
    settings = {"num_inference_steps": STEPS, "output_type": "np", "batch_size": 2}
    first = ours(PROMPTS, seed=1, guidance_scale=5.0, **settings).images
    functions = (
        sample_steps,
        conditioner._encode_prompt,
        images._decode,
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
    settings = {"num_inference_steps": STEPS, "output_type": "np", "scheduler": "euler_ancestral"}
    prompts = ["a", "b", "c"]
    alone = ours(prompts, batch_size=1, **settings).images
    together = ours(prompts, batch_size=2, **settings).images
    assert np.abs(alone - together).max() < TIGHT
    # One batch after the other is returned as soon as it is generated.
    done, batches = [], []

    def take(images):
        batches.append(images)
        assert sum(done) == len(batches) * STEPS

    kept = ours(prompts, batch_size=2, progress=done.append, on_batch=take, **settings)
    assert kept.images == [] and [len(images) for images in batches] == [2, 1]
    assert np.array_equal(together, np.concatenate(batches))


def test_progress_counts_every_step_and_changes_nothing(ours, latents):
    done = []
    settings = {"scheduler": "dpmpp_2m"}
    watched = run_ours(ours, latents, progress=done.append, **settings)
    assert sum(done) == STEPS and len(done) > 1
    assert np.abs(watched - run_ours(ours, latents, **settings)).max() < TIGHT


def test_previews_approach_the_image_and_a_call_can_be_ended(ours, latents, monkeypatch):
    seen = []
    monkeypatch.setattr(images, "PREVIEWS_SHARE", np.inf)
    settings = {"scheduler": "dpmpp_2m"}
    made = run_ours(ours, latents, on_preview=seen.append, **settings)
    assert len(seen) == STEPS - max(1, round(STEPS * images.FIRST_PREVIEW))
    assert all(s.dtype == np.uint8 and s.shape == made.shape for s in seen)
    apart = [np.abs(s / 255 - made).mean() for s in seen]
    assert apart[-1] < apart[0]

    class Ended(Exception):
        pass

    def end(steps):
        raise Ended

    with pytest.raises(Ended):
        run_ours(ours, latents, progress=end, **settings)
    monkeypatch.setattr(images, "PREVIEWS_SHARE", 0)
    seen.clear()
    assert np.array_equal(run_ours(ours, latents, on_preview=seen.append, **settings), made)
    assert len(seen) == 1


def test_output_types_and_numbering(ours):
    settings = {"num_inference_steps": STEPS, "batch_size": 2, "seed": 3}
    pil = ours(PROMPTS, num_images_per_prompt=2, **settings).images
    arrays = ours(PROMPTS, num_images_per_prompt=2, output_type="np", **settings).images
    assert len(pil) == 4 and pil[0].size == (64, 64)
    assert np.array_equal(np.asarray(pil[3]), (arrays[3] * 255).round().astype(np.uint8))
    assert ours("a", output_type="latent", **settings).images.shape == (1, 8, 8, 4)


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
from persongen_jax.pipeline import Pipeline, conditioner, images
assert jax.device_count() == 8
pipe = Pipeline.from_pretrained(sys.argv[1])
assert pipe.mesh.size == 8
prompts = [f"prompt {i}" for i in range(11)]
images = pipe(prompts, num_inference_steps=int(sys.argv[2]), output_type="np").images
np.save(sys.argv[3], images)
"""


def test_prompts_are_dealt_out_over_eight_devices(ours, small_base, tmp_path, monkeypatch):
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8"
    monkeypatch.setenv("XLA_FLAGS", flags)
    file = tmp_path / "images.npy"
    run = subprocess.run(
        [sys.executable, "-c", EIGHT_DEVICES, str(small_base), str(STEPS), str(file)],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    prompts = [f"prompt {i}" for i in range(11)]
    settings = {"num_inference_steps": STEPS, "output_type": "np", "batch_size": 2}
    found, wanted = np.load(file), ours(prompts, **settings).images
    assert found.shape == (11, 64, 64, 3)
    assert np.abs(found - wanted).max() < TIGHT
