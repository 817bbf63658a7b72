"""ControlNets as diffusers writes them: read, written back bit-equal, or refused."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from diffusers import ControlNetModel as TorchControlNet
from diffusers import UNet2DConditionModel as TorchUNet
from safetensors.numpy import load_file

from persongen_jax.models.sdxl.unet_config import complete_config
from persongen_jax.weights.errors import MissingFile, WeightsError
from persongen_jax.weights.formats.controlnet import FILE_NAME, load_controlnet, save_controlnet
from tests.helpers.configs import TINY_UNETS
from tests.helpers.twins import randomise

UNET = complete_config(TINY_UNETS["sdxl"])


@pytest.fixture(scope="module")
def torch_net():
    return randomise(TorchControlNet.from_unet(TorchUNet(**TINY_UNETS["sdxl"])))


@pytest.fixture(scope="module")
def folder(torch_net, tmp_path_factory):
    folder = tmp_path_factory.mktemp("controlnet")
    torch_net.save_pretrained(folder)
    return folder


def test_written_back_bit_equal(folder, tmp_path):
    net, config = load_controlnet(folder, UNET)
    save_controlnet(net, tmp_path, config)
    before, after = load_file(folder / FILE_NAME), load_file(tmp_path / FILE_NAME)
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[key], after[key]) for key in before)
    assert json.loads((folder / "config.json").read_text()) == json.loads(
        (tmp_path / "config.json").read_text()
    )


def test_diffusers_opens_what_has_its_own_config(folder, torch_net, tmp_path):
    net, _ = load_controlnet(folder, UNET)
    save_controlnet(net, tmp_path)
    theirs = TorchControlNet.from_pretrained(tmp_path).state_dict()
    assert all((theirs[key] == value).all() for key, value in torch_net.state_dict().items())


@pytest.mark.parametrize("form", ["fp16", "bin", "file", "in a pipeline", "null"])
def test_other_forms(form, folder, torch_net, tmp_path):
    path, options, tolerance = tmp_path, {}, 0
    if form == "fp16":
        randomise(TorchControlNet(**torch_net.config)).load_state_dict(torch_net.state_dict())
        torch_net.save_pretrained(tmp_path, variant="fp16")
        options = {"variant": "fp16", "param_dtype": jnp.float16}
        tolerance = 1e-3
    elif form == "bin":
        torch_net.save_pretrained(tmp_path, safe_serialization=False)
    elif form == "file":
        path = folder / FILE_NAME
    elif form == "in a pipeline":
        torch_net.save_pretrained(tmp_path / "controlnet")
    else:  # InstantID's config.json has null where others leave a key out
        torch_net.save_pretrained(tmp_path)
        config = json.loads((tmp_path / "config.json").read_text())
        config |= {"upcast_attention": None, "global_pool_conditions": None}
        del config["mid_block_type"]
        (tmp_path / "config.json").write_text(json.dumps(config))
    net, _ = load_controlnet(path, UNET, **options)
    theirs = torch_net.state_dict()["controlnet_mid_block.weight"].numpy()[..., 0, 0].T
    ours = np.asarray(net.controlnet_mid_block.kernel[...], np.float32)[0, 0]
    assert np.abs(ours - theirs).max() <= tolerance


def test_a_file_alone_shows_the_widths_of_its_images_encoder(tmp_path):
    unet = TorchUNet(**TINY_UNETS["sdxl"])
    TorchControlNet.from_unet(unet, conditioning_embedding_out_channels=(4, 8, 12)).save_pretrained(
        tmp_path
    )
    (tmp_path / "config.json").unlink()
    net, config = load_controlnet(tmp_path / FILE_NAME, UNET)
    assert net.factor == 4 and config["conditioning_embedding_out_channels"] == [4, 8, 12]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"cross_attention_dim": 48}, "another base: it reads text states of width"),
        ({"block_out_channels": [32, 64, 96]}, "another base: it has the channels"),
        ({"layers_per_block": 1}, "another base"),
    ],
)
def test_made_for_another_base(change, named, folder):
    with pytest.raises(WeightsError, match=named):
        load_controlnet(folder, {**UNET, **complete_config({**TINY_UNETS["sdxl"], **change})})


def test_what_is_none(folder, tmp_path):
    with pytest.raises(MissingFile, match="no such file"):
        load_controlnet(tmp_path / "nothing", UNET)
    with pytest.raises(MissingFile, match=r"no config\.json"):
        load_controlnet(tmp_path, UNET)
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(
        json.dumps({**config, "_class_name": "ControlNetUnionModel"})
    )
    with pytest.raises(WeightsError, match="ControlNetUnionModel"):
        load_controlnet(tmp_path, UNET)
    TorchUNet(**TINY_UNETS["sdxl"]).save_pretrained(tmp_path / "unet")
    with pytest.raises(WeightsError, match="UNet2DConditionModel"):
        load_controlnet(tmp_path / "unet", UNET)
    with pytest.raises(WeightsError, match="UNet in diffusers' format"):
        load_controlnet(tmp_path / "unet" / FILE_NAME, UNET)
