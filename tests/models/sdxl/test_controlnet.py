"""Our ControlNet against diffusers' on torch: layer by layer, whole, and its full size."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import ControlNetModel as TorchControlNet
from diffusers import UNet2DConditionModel as TorchUNet
from flax import nnx

from persongen_jax.diffusion.conditioning import Conditioning, Residuals, TokenStream
from persongen_jax.models.branches import add_branch
from persongen_jax.models.layers import UnusedRngs
from persongen_jax.models.lora import add_lora
from persongen_jax.models.sdxl.controlnet import ControlNetModel, controlnet_from_unet
from persongen_jax.models.sdxl.unet import UNet2DConditionModel
from persongen_jax.weights.loader import parameter_leaves, to_torch_shape, torch_key
from tests.helpers.configs import SDXL_UNET, TINY_UNETS
from tests.helpers.twins import load_twin, nhwc, randomise, relative_error

TOLERANCE = 1e-4
UP_PATH = ("up_block_types", "sample_size", "out_channels")
# Two levels compile in a third of the time; all three are compared with --runslow.
UNET = {
    **TINY_UNETS["sdxl"],
    "attention_head_dim": [2, 4],
    "block_out_channels": [32, 64],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
    "transformer_layers_per_block": [1, 1],
    "layers_per_block": 1,
}
WIDTHS = {"conditioning_embedding_out_channels": [4, 8, 12, 16]}


def without_up_path(config):
    return {key: value for key, value in config.items() if key not in UP_PATH}


TINY = without_up_path(UNET) | WIDTHS
WHOLE = without_up_path(TINY_UNETS["sdxl"]) | WIDTHS
SMALL = {"down_block_types": ["DownBlock2D"] * 2, "mid_block_type": "UNetMidBlock2D"}


def make_twins(**changes):
    config = {**TINY, **changes}
    torch_net = randomise(TorchControlNet(**config))
    net = load_twin(lambda: ControlNetModel(config, rngs=UnusedRngs()), torch_net)
    return torch_net, net


def make_inputs(size=(8, 8)):
    generator = torch.Generator().manual_seed(1)

    def randn(*shape):
        return torch.randn(*shape, generator=generator)

    height, width = size
    image = torch.rand(2, 3, 8 * height, 8 * width, generator=generator)
    added = {"text_embeds": randn(2, 32), "time_ids": 1024 * torch.rand(2, 6, generator=generator)}
    return randn(2, 4, height, width), torch.tensor([1, 981]), randn(2, 7, 64), added, image


def to_conditioning(context, added):
    return Conditioning(
        streams={"text": TokenStream(jnp.asarray(context.numpy()))},
        pooled_prompt_embeds=jnp.asarray(added["text_embeds"].numpy()),
        time_ids=jnp.asarray(added["time_ids"].numpy()),
    )


def listed(residuals):
    own = residuals.down_block_additional_residuals
    return [*own, residuals.mid_block_additional_residual]


def run_theirs(torch_net, inputs, **settings):
    sample, timesteps, context, added, image = inputs
    with torch.no_grad():
        down, mid = torch_net(
            sample,
            timesteps,
            context,
            image,
            added_cond_kwargs=added,
            return_dict=False,
            **settings,
        )
    return [nhwc(each) for each in (*down, mid)]


def run_ours(net, inputs, scale=None, **settings):
    sample, timesteps, context, added, image = inputs
    run = jax.jit(lambda *a: net(*a, scale, **settings))
    conditioning = to_conditioning(context, added)
    return listed(run(nhwc(sample), jnp.asarray(timesteps.numpy()), conditioning, nhwc(image)))


def worst(ours, theirs):
    return max(relative_error(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize(
    ("changes", "settings"),
    [
        ({}, {}),
        ({"controlnet_conditioning_channel_order": "bgr"}, {"guess_mode": True}),
        ({"global_pool_conditions": True, **SMALL}, {"guess_mode": True}),
        pytest.param(WHOLE, {}, marks=pytest.mark.slow),
        pytest.param({"use_linear_projection": False}, {}, marks=pytest.mark.slow),
    ],
    ids=["plain", "bgr, guess", "small, pools", "three levels", "1x1 convolutions"],
)
def test_every_residual(changes, settings):
    torch_net, net = make_twins(**changes)
    inputs = make_inputs()
    theirs = run_theirs(torch_net, inputs, conditioning_scale=0.7, **settings)
    ours = run_ours(net, inputs, jnp.full(2, 0.7), **settings)
    assert (
        len(ours) == (10 if changes is WHOLE else 5) and min(each.std() for each in theirs) > 0.01
    )
    assert worst(ours, theirs) < TOLERANCE


@pytest.mark.slow
def test_sides_that_do_not_halve_evenly():
    torch_net, net = make_twins()
    inputs = make_inputs((7, 5))
    assert worst(run_ours(net, inputs), run_theirs(torch_net, inputs)) < TOLERANCE


def test_layer_by_layer():
    """The layers that the UNet does not have; the others are tested there."""
    torch_net, net = make_twins()
    seen = {}

    def remember(path):
        def hook(module, args, output):
            seen[path] = args[0], output

        return hook

    for path, module in torch_net.named_modules():
        if isinstance(module, torch.nn.Conv2d) and path.startswith("controlnet_"):
            module.register_forward_hook(remember(path))
    run_theirs(torch_net, make_inputs())
    assert len(seen) == 8 + 4 + 1
    for path, (given, theirs) in seen.items():
        layer = net
        for part in path.split("."):
            layer = layer[int(part)] if part.isdigit() else getattr(layer, part)
        assert relative_error(layer(nhwc(given)), nhwc(theirs)) < TOLERANCE, path


def test_the_unet_adds_them_as_diffusers_does():
    torch_unet = randomise(TorchUNet(**UNET))
    unet = load_twin(lambda: UNet2DConditionModel(UNET, rngs=UnusedRngs()), torch_unet)
    inputs = make_inputs()
    sample, timesteps, context, added, _ = inputs
    residuals = run_theirs(make_twins()[0], inputs)
    *down, mid = (torch.from_numpy(r).permute(0, 3, 1, 2) for r in residuals)
    with torch.no_grad():
        theirs = torch_unet(
            sample,
            timesteps,
            context,
            added_cond_kwargs=added,
            down_block_additional_residuals=down,
            mid_block_additional_residual=mid,
        ).sample
    conditioning = to_conditioning(context, added)
    call = jax.jit(lambda *a: unet(*a))
    plain = nhwc(sample), jnp.asarray(timesteps.numpy())
    *ours, last = map(jnp.asarray, residuals)
    with_them = call(*plain, conditioning.with_residuals(Residuals(ours, last)))
    assert relative_error(with_them, nhwc(theirs)) < TOLERANCE
    # A scale of 0 is bit-equal to no ControlNet.
    nothing = jax.tree.map(jnp.zeros_like, Residuals(ours, last))
    assert np.array_equal(
        call(*plain, conditioning.with_residuals(nothing)), call(*plain, conditioning)
    )


def test_from_unet_copies_what_diffusers_copies():
    torch_unet = randomise(TorchUNet(**UNET))
    unet = load_twin(lambda: UNet2DConditionModel(UNET, rngs=UnusedRngs()), torch_unet)
    theirs = TorchControlNet.from_unet(torch_unet).state_dict()
    net = controlnet_from_unet(unet, rngs=nnx.Rngs(0))
    leaves = {torch_key(path): (path, leaf) for path, leaf in parameter_leaves(net).items()}
    assert leaves.keys() == theirs.keys()
    fresh = 0
    for key, (path, leaf) in leaves.items():
        assert to_torch_shape(path, leaf.shape) == tuple(theirs[key].shape)
        if key.startswith("controlnet_cond_embedding") and "conv_out" not in key:
            fresh += 1  # drawn at random by both
            continue
        value = np.asarray(leaf)
        if path[-1] == "kernel":
            value = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T
        assert np.array_equal(value, theirs[key].numpy()), key
    assert fresh == 14
    # All that leaves it passes a convolution that is zero.
    last = [*net.controlnet_down_blocks, net.controlnet_mid_block]
    assert not any(np.any(leaf) for layer in last for leaf in (layer.kernel[...], layer.bias[...]))


def test_it_starts_without_what_methods_have_added_to_the_unet():
    unet = UNet2DConditionModel(UNET, rngs=nnx.Rngs(0))
    own = {"conditioning_embedding_out_channels": [4, 8, 12]}
    plain = parameter_leaves(controlnet_from_unet(unet, own, rngs=nnx.Rngs(1)))
    add_branch(unet, "identity")
    add_lora(unet, re.compile(".*to_q"), 2, alpha=None, rngs=nnx.Rngs(2))
    net = parameter_leaves(controlnet_from_unet(unet, own, rngs=nnx.Rngs(1)))
    assert net.keys() == plain.keys()
    assert all(np.array_equal(net[path], plain[path]) for path in plain)


def test_full_size_has_the_published_tensors():
    config = without_up_path(SDXL_UNET)
    net = nnx.eval_shape(lambda: ControlNetModel(config, rngs=UnusedRngs()))
    leaves = parameter_leaves(net)
    ours = {torch_key(path): to_torch_shape(path, leaf.shape) for path, leaf in leaves.items()}
    with torch.device("meta"):
        theirs = TorchControlNet(**config).state_dict()
    assert ours == {key: tuple(value.shape) for key, value in theirs.items()}
    assert len(ours) == 844
    assert round(sum(leaf.size for leaf in leaves.values()) / 1e6, 3) == 1251.014


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"mid_block_type": "UNetMidBlock2DSimpleCrossAttn"}, "mid_block_type"),
        ({"controlnet_conditioning_channel_order": "brg"}, "channel_order"),
        ({"class_embed_type": "timestep"}, "class_embed_type"),
    ],
)
def test_unsupported_config_is_named(change, named):
    with pytest.raises(ValueError, match=named):
        nnx.eval_shape(lambda: ControlNetModel({**TINY, **change}, rngs=UnusedRngs()))
