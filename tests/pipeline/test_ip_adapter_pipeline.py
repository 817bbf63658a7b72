"""Images with an IP-Adapter, ours against diffusers' from the same file and the same latents."""

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel
from flax import nnx
from ml_collections import ConfigDict
from PIL import Image

from persongen_jax import models
from persongen_jax.methods import get_method
from persongen_jax.methods.base import Parts
from persongen_jax.pipeline import Pipeline
from persongen_jax.systems.sdxl import Sdxl
from persongen_jax.weights.formats.ip_adapter import save_image_encoder, save_ip_adapter
from persongen_jax.weights.formats.sdxl.loading import load_sdxl
from tests.helpers.ip_adapters import write_ip_adapter
from tests.helpers.training_runs import small_base

PIXEL = 2 / 255  # what the issue asks for; float32 twins are far below it
TIGHT = 0.5 / 255
PROMPT, NEGATIVE = "a man in a red hat", "blurry"
STEPS = 10
FACE_NET = f"{models.__path__[0]}/../assets/face_net"
FEATURES = {"base": 32, "plus": 64, "faceid": 128}


@pytest.fixture(scope="module")
def faces():
    """Two references, at the recogniser's size."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (2, 5, 5, 3), np.uint8)
    return [Image.fromarray(image).resize((40, 40), Image.BICUBIC) for image in coarse]


@pytest.fixture(scope="module")
def latents():
    return np.random.default_rng(1).standard_normal((1, 8, 8, 4)).astype(np.float32)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return small_base(tmp_path_factory)


@pytest.fixture(scope="module")
def files(base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ip-adapters")
    unet = UNet2DConditionModel.from_pretrained(base / "unet")
    for kind, features in FEATURES.items():
        rank = 4 if kind == "faceid" else 0
        write_ip_adapter(folder / f"{kind}.safetensors", unet, kind, features, rank=rank)
    (folder / "image_encoder").symlink_to(base / "image_encoder")
    return folder


def open_file(folder, path, name=None):
    pipe = Pipeline.from_pretrained(folder)
    pipe.load_method(name, path, encoder=FACE_NET if path.stem == "faceid" else "")
    return pipe


def our_pictures(pipe, faces, latents, **settings):
    """IP-Adapter acts from the first step on."""
    settings = {"start_merge_step": -1, "guidance_scale": 5.0, **settings}
    return pipe(
        PROMPT,
        NEGATIVE,
        references=[faces],
        latents=latents,
        num_inference_steps=STEPS,
        output_type="np",
        **settings,
    ).images


def their_pipeline(base, folder, name, encoder="image_encoder"):
    pipe = StableDiffusionXLPipeline.from_pretrained(base)
    pipe.set_progress_bar_config(disable=True)
    pipe.load_ip_adapter(str(folder), subfolder="", weight_name=name, image_encoder_folder=encoder)
    return pipe


def their_pictures(pipe, latents, **settings):
    return pipe(
        PROMPT,
        negative_prompt=NEGATIVE,
        latents=torch.from_numpy(latents).permute(0, 3, 1, 2).contiguous(),
        num_inference_steps=STEPS,
        guidance_scale=5.0,
        output_type="np",
        **settings,
    ).images


@pytest.mark.parametrize(
    ("kind", "name"), [("base", "ip_adapter"), ("plus", None), ("faceid", "ip_adapter")]
)
def test_same_pictures_as_diffusers(kind, name, base, files, faces, latents, golden):
    ours = open_file(base, files / f"{kind}.safetensors", name)

    def of_diffusers():
        if kind == "faceid":
            theirs = their_pipeline(base, files, "faceid.safetensors", encoder=None)
            crops = np.stack([np.asarray(face, np.float32) for face in faces]) / 127.5 - 1
            embeds = np.asarray(ours.model.image_encoder(crops))
            embeds = torch.from_numpy(embeds / np.linalg.norm(embeds, axis=1, keepdims=True))[None]
            images = {"ip_adapter_image_embeds": [torch.cat([torch.zeros_like(embeds), embeds])]}
        else:
            theirs = their_pipeline(base, files, f"{kind}.safetensors")
            images = {"ip_adapter_image": [faces]}
        theirs.set_ip_adapter_scale(0.8)
        return their_pictures(theirs, latents, **images)

    wanted = golden(of_diffusers)
    found = our_pictures(ours, faces, latents, scales={"identity": 0.8})
    assert wanted.std() > 0.05
    assert np.abs(found - wanted).max() < TIGHT
    # The references matter, and so does each of them.
    without = our_pictures(ours, faces, latents, scales={"identity": 0.0})
    other = our_pictures(ours, faces[:1], latents, scales={"identity": 0.8})
    assert np.abs(wanted - without).max() > 2 * PIXEL
    assert np.abs(wanted - other).max() > TIGHT


def test_what_does_not_go_with_a_file_is_named(base, files):
    pipe = Pipeline.from_pretrained(base)
    with pytest.raises(ValueError, match="base.safetensors: is an IP-Adapter file.*'photomaker'"):
        pipe.load_method("photomaker", files / "base.safetensors")
    with pytest.raises(ValueError, match="face recogniser.*--image-encoder"):
        pipe.load_method(None, files / "faceid.safetensors")


def test_our_method_in_diffusers(base, faces, latents, golden, tmp_path):
    """One token per reference, written as a base file with the image encoder that goes with it."""
    method, loaded = get_method("id_branch"), load_sdxl(base)
    config = {"base": str(base), "id_encoder": "", "dtype": "float32", "trigger_word": "img"}
    method.attach(Parts(loaded.model, loaded.tokenizers), ConfigDict(config), nnx.Rngs(0))
    ours = Pipeline.from_system(Sdxl(ConfigDict(config), loaded, method))
    rng = np.random.default_rng(2)
    for path, leaf in nnx.to_flat_state(nnx.state(ours.model.unet, nnx.Param)):
        if "branches" in path:
            noise = rng.standard_normal(leaf.get_value().shape) / 10
            leaf.set_value(leaf.get_value() + noise.astype(np.float32))
    scale = ours.model.id_tokens.id_norm.scale
    scale.set_value(scale.get_value() * rng.uniform(0.5, 2, scale.shape).astype(np.float32))
    save_ip_adapter(ours.model, tmp_path / "mine.safetensors")
    save_image_encoder(ours.model, tmp_path / "image_encoder")

    def of_diffusers():
        theirs = their_pipeline(base, tmp_path, "mine.safetensors")
        return their_pictures(theirs, latents, ip_adapter_image=[faces])

    wanted = golden(of_diffusers)
    found = our_pictures(ours, faces, latents)
    assert np.abs(found - wanted).max() < TIGHT
    without = our_pictures(ours, faces, latents, scales={"identity": 0.0})
    assert np.abs(wanted - without).max() > TIGHT
