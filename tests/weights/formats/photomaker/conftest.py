"""PhotoMaker's file of version 1 for the small base, and the model that it fills."""

import pytest
import torch
from diffusers import UNet2DConditionModel
from transformers import CLIPVisionConfig

from persongen_jax.weights.formats.photomaker import (
    load_photomaker_into,
)
from tests.helpers.twins import randomise
from tests.weights.formats.photomaker.models import RANK, TorchIDEncoder, attach


@pytest.fixture(scope="session")
def encoder(small_base):
    """PyTorch's ID encoder with the small base's sizes."""
    config = CLIPVisionConfig.from_pretrained(small_base / "image_encoder")
    return randomise(TorchIDEncoder(config, (32, 64)))


@pytest.fixture(scope="session")
def unet(small_base):
    return UNet2DConditionModel.from_pretrained(small_base / "unet")


@pytest.fixture(scope="session")
def tensors(encoder, unet):
    """The two dictionaries of a file; half of them bfloat16, as the published one mixes dtypes."""
    generator = torch.Generator().manual_seed(1)
    lora = {}
    for name, processor in unet.attn_processors.items():
        attention = unet.get_submodule(name.removesuffix(".processor"))
        for short, layer in (
            ("to_q", attention.to_q),
            ("to_k", attention.to_k),
            ("to_v", attention.to_v),
            ("to_out", attention.to_out[0]),
        ):
            out, inner = layer.weight.shape
            for half, shape in (("down", (RANK, inner)), ("up", (out, RANK))):
                value = 0.2 * torch.randn(shape, generator=generator)
                lora[f"unet.{name}.{short}_lora.{half}.weight"] = value
        assert processor is not None
    both = {"id_encoder": dict(encoder.state_dict()), "lora_weights": lora}
    return {
        part: {
            key: value.bfloat16() if i % 2 and "vision_model" not in key else value
            for i, (key, value) in enumerate(inner.items())
        }
        for part, inner in both.items()
    }


@pytest.fixture(scope="session")
def file(tensors, tmp_path_factory):
    path = tmp_path_factory.mktemp("photomaker") / "photomaker-v1.bin"
    torch.save(tensors, path)
    return path


@pytest.fixture(scope="session")
def model(small_base, file):
    model = attach(small_base)
    load_photomaker_into(model, file)
    return model
