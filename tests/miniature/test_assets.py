"""The shipped checkpoints are what they claim: ordinary ones, and good enough."""

import json

import numpy as np
import pytest

from persongen_jax.miniature.__main__ import ASSETS
from persongen_jax.miniature.figures.networks import (
    measure_face_net,
    measure_keypoints,
    measure_vae,
)
from persongen_jax.miniature.figures.samples import compiled, held_out
from persongen_jax.weights.formats.arcface import load_arcface
from persongen_jax.weights.formats.keypoint_net import load_keypoint_net
from persongen_jax.weights.formats.sdxl.loading import load_sdxl

FIGURES = json.loads((ASSETS / "figures.json").read_text())
MOST_BYTES = 40_000_000


@pytest.fixture(scope="module")
def base():
    return load_sdxl(ASSETS / "sdxl")


def test_all_of_it_is_small():
    assert sum(path.stat().st_size for path in ASSETS.rglob("*") if path.is_file()) <= MOST_BYTES


def test_diffusers_opens_the_base_and_generates_the_same_image():
    """From prompt to pixels, at most 2 of 255 apart: float32 from float16 weights."""
    import torch
    from diffusers import StableDiffusionXLPipeline

    from persongen_jax.pipeline import Pipeline

    theirs = StableDiffusionXLPipeline.from_pretrained(ASSETS / "sdxl", dtype=torch.float32)
    theirs.set_progress_bar_config(disable=True)
    ours = Pipeline.from_pretrained(ASSETS / "sdxl")
    prompt = "a photo of a smiling woman. a beach with a red umbrella. she is in a blue dress"
    noise = ours.draw_latents(0, 1, 64, 64)
    settings = {"num_inference_steps": 6, "guidance_scale": 4.0, "height": 64, "width": 64}
    ours = ours(prompt, latents=noise, output_type="np", **settings).images[0]
    latents = torch.from_numpy(np.asarray(noise).transpose(0, 3, 1, 2).copy())
    theirs = theirs(prompt, latents=latents, output_type="np", **settings).images[0]
    assert np.abs(ours - theirs).max() * 255 <= 2
    assert ours.std() > 0.1


def test_transformers_opens_clip():
    from transformers import CLIPModel, CLIPTokenizer

    model = CLIPModel.from_pretrained(ASSETS / "clip")
    assert model.config.vision_config.image_size == 48
    ids = CLIPTokenizer.from_pretrained(ASSETS / "clip")("a snowy night").input_ids
    assert len(ids) == 5  # every word of the captions is one token


@pytest.mark.parametrize(
    "of",
    [
        pytest.param("vae", marks=pytest.mark.slow),
        pytest.param("face_net", marks=pytest.mark.slow),
        "keypoints",
    ],
)
def test_figures_hold(of, base):
    """The figures of these weights in figures.json are measured again, by the same functions."""
    keypoint_judge = load_keypoint_net(ASSETS / "judges" / "face_detector")
    if of == "vae":
        measured = measure_vae(base.model.vae)
    elif of == "face_net":
        face_net = load_arcface(ASSETS / "face_net" / "model.safetensors", input_size=40).model
        measured = measure_face_net(face_net, keypoint_judge)
    else:
        measured = measure_keypoints(keypoint_judge, "judge_")
    for name, figure in measured.items():
        assert figure["samples"] == FIGURES[name]["samples"], name
        assert figure["value"] == pytest.approx(FIGURES[name]["value"], rel=0.01), name


def test_figures_name_their_samples_and_intervals():
    assert len(FIGURES) >= 20
    for name, figure in FIGURES.items():
        assert figure["samples"] >= 100, name
        low, high = figure["interval"]
        assert low <= figure["value"] <= high, name
        assert figure.keys() >= {"bar", "met"} or not figure.keys() & {"bar", "met", "aim"}, name


def test_keypoint_net_sees_no_face_in_a_picture_without_one():
    net = load_keypoint_net(ASSETS / "sdxl" / "face_detector")
    drawn = held_out(32, 1)
    images = np.array(drawn.images)
    for image, (x0, y0, x1, y1) in zip(images, drawn.face_box, strict=True):
        image[max(0, int(y0) - 3) : int(y1) + 3, max(0, int(x0) - 3) : int(x1) + 3] = image[0, 0]
    present = compiled(net, lambda net, x: net(x / 127.5 - 1).present)
    assert (np.asarray(present(images.astype(np.float32))) > 0).mean() < 0.2
    assert (np.asarray(present(drawn.images.astype(np.float32))) > 0).mean() > 0.9


def test_the_adapter_is_read_with_the_heads_it_was_trained_with():
    """Shapes do not show them, and the miniature's are not 64 wide: the file's metadata do."""
    from persongen_jax.weights.formats.photomaker import load_photomaker_tower

    tower = load_photomaker_tower(ASSETS / "photomaker-v1.safetensors", dtype=np.float32)
    config = json.loads((ASSETS / "clip" / "config.json").read_text())["vision_config"]
    for name in ("num_attention_heads", "hidden_size", "patch_size", "image_size"):
        assert tower.config[name] == config[name]
