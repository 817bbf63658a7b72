"""ControlNets in the pipeline against diffusers': same weights, same latents, same images."""

import functools
import json
import warnings

import numpy as np
import pytest

from persongen_jax.pipeline import Pipeline
from persongen_jax.pipeline.checks import CallWarning
from persongen_jax.weights.errors import WeightsError
from tests.helpers.configs import TINY_UNETS
from tests.pipeline.pictures import PIXEL, PROMPTS, TIGHT, to_torch

STEPS = 10


def images(size=(64, 64), count=1):
    """Coarse random images, uint8 [h, w, 3]."""
    coarse = np.random.default_rng(5).integers(0, 256, (count, 8, 8, 3), np.uint8)
    rows, columns = (np.arange(side) * 8 // side for side in size)
    return list(coarse[:, rows][:, :, columns])


@pytest.fixture(scope="module")
def folders(small_base, tmp_path_factory):
    """Two ControlNets with random weights, as diffusers saves them."""
    import torch
    from diffusers import ControlNetModel, UNet2DConditionModel

    from tests.helpers.twins import randomise

    config = json.loads((small_base / "unet" / "config.json").read_text())
    made = []
    for seed in (1, 2):
        torch.manual_seed(seed)  # of the biases, to which randomise adds
        unet = UNet2DConditionModel.from_config(config)
        made.append(tmp_path_factory.mktemp(f"controlnet_{seed}"))
        widths = (4, 8, 12, 16)
        net = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=widths)
        randomise(net, seed, 0.5).save_pretrained(made[-1])
    return made


@pytest.fixture(scope="module")
def ours(small_base, folders):
    """A function that gives the pipeline with so many ControlNets."""
    pipe = Pipeline.from_pretrained(small_base)

    def with_nets(number):
        pipe.unload_controlnet()
        for folder in folders[:number]:
            pipe.load_controlnet(folder)
        return pipe

    return with_nets


def run_theirs(small_base, folders, latents, control, **settings):
    from diffusers import ControlNetModel, StableDiffusionXLControlNetPipeline
    from PIL import Image

    nets = [ControlNetModel.from_pretrained(folder) for folder in folders]
    pipe = StableDiffusionXLControlNetPipeline.from_pretrained(
        small_base, controlnet=nets if len(nets) > 1 else nets[0]
    )
    pipe.set_progress_bar_config(disable=True)
    image = [Image.fromarray(each) for each in control]
    settings = {"num_inference_steps": STEPS, "guidance_scale": 5.0, **settings}
    image = image if len(nets) > 1 or len(image) > 1 else image[0]
    return pipe(
        PROMPTS, image=image, latents=to_torch(latents), output_type="np", **settings
    ).images


CASES = {
    "one": (1, {"controlnet_conditioning_scale": 0.8}),
    "two, windows": (
        2,
        {
            "controlnet_conditioning_scale": [0.9, 0.6],
            "control_guidance_start": [0.0, 0.3],
            "control_guidance_end": [0.5, 1.0],
        },
    ),
    "guess": (1, {"guess_mode": True, "guidance_scale": 3.0}),
    "no guidance": (1, {"guidance_scale": 1.0}),
    "an image each": (1, {"control_guidance_end": 0.7}),
    "odd size": (1, {}),
}


SLOW = ("no guidance", "odd size")


@pytest.mark.parametrize(
    "case", [pytest.param(c, marks=pytest.mark.slow) if c in SLOW else c for c in CASES]
)
def test_same_pictures_as_diffusers(case, ours, small_base, folders, golden):
    number, settings = CASES[case]
    size = (72, 40) if case == "odd size" else (64, 64)
    count = 2 if number == 2 or case == "an image each" else 1
    control = images(size, count)
    shape = (2, size[0] // 8, size[1] // 8, 4)
    latents = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    wanted = golden(lambda: run_theirs(small_base, folders[:number], latents, control, **settings))
    pipe = ours(number)
    settings = {"num_inference_steps": STEPS, "guidance_scale": 5.0, **settings}
    run = functools.partial(pipe, PROMPTS, latents=latents, output_type="np")
    found = run(control_image=control if count > 1 else control[0], **settings).images
    difference = np.abs(found - wanted).max()
    assert difference < PIXEL and difference < TIGHT
    pipe.unload_controlnet()
    plain = {name: settings[name] for name in ("num_inference_steps", "guidance_scale")}
    height, width = size
    without = run(height=height, width=width, **plain).images
    assert np.abs(found - without).max() > 10 * PIXEL  # they act


def test_scale_0_and_a_window_outside_are_the_base_bit_equal(ours):
    pipe, control = ours(1), images()[0]
    settings = {"num_inference_steps": 4, "output_type": "latent", "seed": 3}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CallWarning)
        base = pipe(PROMPTS, **settings).images
    settings["control_image"] = control
    with pytest.warns(CallWarning, match="its scale is 0, or no step"):
        found = pipe(PROMPTS, controlnet_conditioning_scale=0.0, **settings).images
    assert np.array_equal(found, base)
    with pytest.warns(CallWarning, match="no step of 4 lies within"):
        window = {"control_guidance_start": 0.3, "control_guidance_end": 0.45}
        found = pipe(PROMPTS, **window, **settings).images
    assert np.array_equal(found, base)
    assert not np.array_equal(pipe(PROMPTS, **settings).images, base)


def test_another_image_scale_and_window_compile_nothing(ours):
    from persongen_jax.diffusion.samplers import sample_steps

    pipe, settings = ours(1), {"num_inference_steps": 4, "output_type": "latent"}
    pipe(PROMPTS, control_image=images()[0], **settings)
    compiled = sample_steps._cache_size()
    pipe(
        PROMPTS,
        control_image=255 - images()[0],
        controlnet_conditioning_scale=0.3,
        control_guidance_end=0.5,
        **settings,
    )
    assert sample_steps._cache_size() == compiled


@pytest.mark.parametrize(
    ("number", "settings", "named"),
    [
        (0, {"control_image": images()[0]}, "needs a ControlNet: call load_controlnet"),
        (1, {"guess_mode": True}, "guess_mode: without control_image"),
        (1, {"control_image": images(count=3)}, "3 images for 2 prompts"),
        (2, {"control_image": images()[0]}, "one image for 2 ControlNets"),
        (1, {"controlnet_conditioning_scale": [1, 2]}, "2 values for 1 ControlNet"),
        (1, {"control_guidance_start": 0.6, "control_guidance_end": 0.5}, "is not before"),
        (1, {"control_guidance_end": 1.5}, "control_guidance_end=1.5: give 0"),
        (1, {"controlnet_conditioning_scale": "much"}, "controlnet_conditioning_scale"),
    ],
)
def test_bad_arguments_are_named(number, settings, named, ours):
    if number and "control_image" not in settings and "guess_mode" not in settings:
        settings = {"control_image": images()[0], **settings}
    with pytest.raises(ValueError, match=named):
        ours(number)(PROMPTS, num_inference_steps=2, **settings)


def test_what_is_stretched_or_idle_is_said(ours):
    nets, settings = ours(1).controlnets, {"num_steps": 4, "guidance_scale": 5.0}
    call, rest = nets.read({"control_image": images((64, 32))[0], "height": 64}, 2)
    assert rest == {"height": 64}
    with pytest.warns(CallWarning, match="32x64 pixels and is stretched to 64x64"):
        call.control((64, 64), **settings)
    with pytest.warns(CallWarning, match="no control_image is given, so it has no effect"):
        assert nets.read({}, 2) == (None, {})
    call, _ = nets.read({"control_image": images()[0], "guess_mode": True}, 2)
    with pytest.warns(CallWarning, match="guess_mode without guidance"):
        call.control((64, 64), num_steps=4, guidance_scale=1.0)


def test_a_saved_base_leaves_them_out_and_says_so(ours, tmp_path):
    with pytest.warns(CallWarning, match="left out, because"):
        ours(1).save_pretrained(tmp_path)
    assert not (tmp_path / "controlnet").exists() and (tmp_path / "unet").is_dir()


def test_the_size_is_the_control_images(ours):
    call, _ = ours(1).controlnets.read({"control_image": images((75, 43))[0]}, 1)
    assert call.size(8) == (72, 40) and call.size(1) == (75, 43)


def test_one_for_another_base_is_refused_and_loaded_ones_stay(ours, tmp_path):
    from diffusers import ControlNetModel, UNet2DConditionModel

    net = ControlNetModel.from_unet(UNet2DConditionModel(**TINY_UNETS["sd15"]))
    net.save_pretrained(tmp_path)
    pipe = ours(1)
    with pytest.raises(WeightsError, match="for another base"):
        pipe.load_controlnet(tmp_path)
    assert len(pipe.controlnets.nets) == 1
    with pytest.raises(ValueError, match="ControlNet 'x' is not loaded"):
        pipe.unload_controlnet("x")
