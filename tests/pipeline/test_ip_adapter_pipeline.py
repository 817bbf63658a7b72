"""Images with an IP-Adapter, ours against diffusers' from the same file and the same latents."""

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel
from flax import nnx
from ml_collections import ConfigDict
from PIL import Image
from transformers import CLIPVisionModelWithProjection

from data_pipeline.faces.align import TEMPLATE, align_face
from data_pipeline.faces.face import Face
from data_pipeline.pictures.transforms import CLIP_MEAN, CLIP_STD
from persongen_jax import models
from persongen_jax.methods import get_method
from persongen_jax.methods.base import Parts
from persongen_jax.pipeline import Pipeline
from persongen_jax.systems.sdxl import Sdxl
from persongen_jax.weights.formats.ip_adapter import save_image_encoder, save_ip_adapter
from persongen_jax.weights.formats.sdxl.loading import load_sdxl
from tests.helpers.ip_adapters import FACES, write_ip_adapter
from tests.helpers.training_runs import small_base

PIXEL = 2 / 255  # what the issue asks for; float32 twins are far below it
TIGHT = 0.5 / 255
PROMPT, NEGATIVE = "a man in a red hat", "blurry"
STEPS = 10
FACE_NET = f"{models.__path__[0]}/../assets/face_net"
FEATURES = {"base": 32, "plus": 64, "faceid": 128, "faceid-plus": 128}


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
        rank = 4 if kind in FACES else 0
        write_ip_adapter(folder / f"{kind}.safetensors", unet, kind, features, rank=rank)
    (folder / "image_encoder").symlink_to(base / "image_encoder")
    return folder


@pytest.fixture(scope="module")
def located():
    """Two whole photographs and where the faces are."""
    rng = np.random.default_rng(3)
    coarse = rng.integers(0, 256, (2, 6, 8, 3), np.uint8)
    photos = [np.asarray(Image.fromarray(p).resize((80, 60), Image.BICUBIC)) for p in coarse]
    return [Face(photo, TEMPLATE * 0.4 + rng.normal(0, 1, (5, 2)) + (16, 9)) for photo in photos]


def open_file(folder, path, name=None, **settings):
    pipe = Pipeline.from_pretrained(folder)
    encoder = FACE_NET if path.stem in FACES else ""
    pipe.load_method(name, path, encoder=encoder, **settings)
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


def normed_with_zeros(ours, crops):
    """[2, n, d]: no face, then the recogniser's embeddings, of length 1."""
    embeds = np.asarray(ours.model.face_encoder(crops))
    embeds = torch.from_numpy(embeds / np.linalg.norm(embeds, axis=1, keepdims=True))[None]
    return torch.cat([torch.zeros_like(embeds), embeds])


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        pytest.param("base", "ip_adapter", marks=pytest.mark.slow),
        ("plus", None),
        pytest.param("faceid", "ip_adapter", marks=pytest.mark.slow),
    ],
)
def test_same_pictures_as_diffusers(kind, name, base, files, faces, latents, golden):
    ours = open_file(base, files / f"{kind}.safetensors", name)

    def of_diffusers():
        if kind == "faceid":
            theirs = their_pipeline(base, files, "faceid.safetensors", encoder=None)
            crops = np.stack([np.asarray(face, np.float32) for face in faces]) / 127.5 - 1
            images = {"ip_adapter_image_embeds": [normed_with_zeros(ours, crops)]}
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


@pytest.mark.parametrize(
    "version",
    [2, pytest.param(1, marks=pytest.mark.slow)],
)
def test_faceid_plus_as_in_diffusers(version, base, files, located, latents, golden, capsys):
    """diffusers leaves the version and CLIP's side of the faces to its caller."""
    said = {} if version == 2 else {"shortcut": False}
    ours = open_file(base, files / "faceid-plus.safetensors", options=said)
    assert ("read as version 2" in capsys.readouterr().err) == (version == 2)

    def of_diffusers():
        theirs = their_pipeline(base, files, "faceid-plus.safetensors", encoder=None)
        tower = CLIPVisionModelWithProjection.from_pretrained(base / "image_encoder")
        crops = [aligned(located, size) / 127.5 - 1 for size in (40, 32)]
        pixels = torch.from_numpy(((crops[1] + 1) / 2 - CLIP_MEAN) / CLIP_STD).permute(0, 3, 1, 2)
        pixels = torch.cat([torch.zeros_like(pixels), pixels])  # no image: zeros when normalised
        with torch.no_grad():
            states = tower(pixels.float(), output_hidden_states=True).hidden_states[-2]
        layer = theirs.unet.encoder_hid_proj.image_projection_layers[0]
        layer.clip_embeds, layer.shortcut = states.unflatten(0, (2, -1)), version == 2
        theirs.set_ip_adapter_scale(0.8)
        images = {"ip_adapter_image_embeds": [normed_with_zeros(ours, crops[0])]}
        return their_pictures(theirs, latents, **images)

    wanted = golden(of_diffusers)
    found = our_pictures(ours, located, latents, scales={"identity": 0.8})
    assert wanted.std() > 0.05
    assert np.abs(found - wanted).max() < TIGHT
    if version == 1:
        return
    ours.model.image_proj.s_scale = 0.0  # CLIP's side of the face matters
    other = our_pictures(ours, located, latents, scales={"identity": 0.8})
    assert np.abs(wanted - other).max() > TIGHT


@pytest.mark.slow
def test_without_references_the_base_acts_alone(base, files, latents):
    """Bit for bit: the file's LoRA does not act either."""
    ours = open_file(base, files / "faceid-plus.safetensors", options={"shortcut": True})
    settings = {"latents": latents, "num_inference_steps": 1, "guidance_scale": 1.0}
    ours, plain = (
        pipe(PROMPT, **settings, output_type="latent").images
        for pipe in (ours, Pipeline.from_pretrained(base))
    )
    assert np.array_equal(ours, plain)


def test_plus_face_as_in_diffusers(base, files, located, latents, golden):
    """Plus-Face has plus' keys; what differs is that it reads aligned faces."""
    ours = open_file(base, files / "plus.safetensors", options={"references": "aligned"})

    def of_diffusers():
        theirs = their_pipeline(base, files, "plus.safetensors")
        theirs.set_ip_adapter_scale(0.8)
        pictures = [Image.fromarray(crop.astype(np.uint8)) for crop in aligned(located, 32)]
        return their_pictures(theirs, latents, ip_adapter_image=[pictures])

    wanted = golden(of_diffusers)
    found = our_pictures(ours, located, latents, scales={"identity": 0.8})
    assert np.abs(found - wanted).max() < TIGHT


def aligned(faces, size):
    """float32 [n, size, size, 3] in 0..255."""
    crops = [align_face(face.image, face.landmarks, size) for face in faces]
    return np.stack(crops).astype(np.float32)


def test_what_does_not_go_with_a_file_is_named(base, files):
    pipe = Pipeline.from_pretrained(base)
    with pytest.raises(ValueError, match="base.safetensors: is an IP-Adapter file.*'photomaker'"):
        pipe.load_method("photomaker", files / "base.safetensors")
    with pytest.raises(ValueError, match="face recogniser.*--image-encoder"):
        pipe.load_method(None, files / "faceid.safetensors")
    for options, named in (
        ({"shortcut": 3}, "shortcut=3: give True or False"),
        ({"s_scale": "nan"}, "s_scale='nan': give a finite number"),
        ({"rank": 3}, "rank=3: ip_adapter with .* no such option; it has shortcut, s_scale"),
    ):
        with pytest.raises(ValueError, match=named):
            pipe.load_method(None, files / "faceid-plus.safetensors", encoder="x", options=options)
    with pytest.raises(ValueError, match="references='body': give face, whole or aligned"):
        pipe.load_method(None, files / "base.safetensors", options={"references": "body"})


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
