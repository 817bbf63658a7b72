"""--controlnet and --control-image: what the pipeline is given, and an image of each size."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from data_pipeline.pictures.reading import ImageError
from persongen_jax.generate.__main__ import parse_arguments
from persongen_jax.generate.control import control_arguments
from tests.generate.command import image_file, pixels, run

PROMPT = ["--base", "base", "--prompt", "a man"]


def arguments(*given):
    return control_arguments(parse_arguments([*PROMPT, *map(str, given)]))


def test_one_net_and_several(tmp_path):
    first, second = (image_file(tmp_path / f"{n}.png") for n in range(2))
    assert arguments() == {}
    one = ["--controlnet", "a", "--control-image", first]
    assert arguments(*one) == {"control_image": first}
    scaled = arguments(*one, "--controlnet-scale", 0, "--guess-mode")
    assert scaled == {
        "control_image": first,
        "controlnet_conditioning_scale": 0.0,
        "guess_mode": True,
    }
    two = [*one, "--controlnet", "b", "--control-image", second]
    given = arguments(
        *two, "--controlnet-conditioning-scale", 0.5, 1, "--control-guidance-end", 0.7
    )
    assert given == {
        "control_image": [first, second],
        "controlnet_conditioning_scale": [0.5, 1.0],
        "control_guidance_end": 0.7,
    }


def test_wrong_numbers_and_images_are_named_before_a_base_is_opened(tmp_path):
    image = image_file(tmp_path / "0.png")
    with pytest.raises(ValueError, match="--control-image: no ControlNet is loaded"):
        arguments("--control-image", image)
    with pytest.raises(ValueError, match="--guess-mode: no ControlNet is loaded"):
        arguments("--guess-mode")
    with pytest.raises(ValueError, match="0 times --control-image for 1 times --controlnet"):
        arguments("--controlnet", "a")
    with pytest.raises(ValueError, match="2 times --control-image for 1 times --controlnet"):
        arguments("--controlnet", "a", "--control-image", image, "--control-image", image)
    with pytest.raises(ImageError, match="nowhere"):
        arguments("--controlnet", "a", "--control-image", tmp_path / "nowhere.png")


@pytest.mark.slow
def test_an_image_by_the_command(small_base, tmp_path):
    """It has the control image's size and says how it was made; a net with weights acts."""
    from persongen_jax.models.sdxl.controlnet import controlnet_from_unet
    from persongen_jax.weights.formats.controlnet import save_controlnet
    from persongen_jax.weights.formats.sdxl.loading import load_sdxl

    net = controlnet_from_unet(load_sdxl(small_base).model.unet, rngs=nnx.Rngs(0))
    image = image_file(tmp_path / "0.png", (64, 48))
    out, folder = tmp_path / "out", tmp_path / "net"
    for scale in (0.0, 0.1):
        kernel = net.controlnet_mid_block.kernel
        kernel.set_value(scale * jax.random.normal(jax.random.key(1), kernel.shape, jnp.float32))
        save_controlnet(net, folder)
        control = ["--controlnet", folder, "--control-image", image]
        run(small_base, out, "--prompt", "a man", *control)
    nothing, acts = (pixels(out / f"0000{n}.png") for n in range(2))
    assert nothing.shape == acts.shape == (64, 48, 3)
    assert not np.array_equal(nothing, acts)
    note = json.loads(Image.open(out / "00001.png").text["settings"])
    assert note["controlnet"] == [str(folder)] and note["control_image"] == [image]
