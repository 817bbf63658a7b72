"""Our AutoencoderKL against diffusers' on torch: layer by layer, whole, tiled, and full size."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL as TorchVAE
from diffusers.image_processor import VaeImageProcessor
from flax import nnx

from persongen_jax.models.layers import UnusedRngs
from persongen_jax.models.sdxl.vae import (
    AutoencoderKL,
    DiagonalGaussianDistribution,
    decode_images,
    scale_latents,
    unscale_latents,
)
from persongen_jax.models.sdxl.vae_tiling import decode_tiled
from persongen_jax.weights.loader import parameter_leaves, to_torch_shape, torch_key
from tests.helpers.twins import load_twin, nhwc, randomise, relative_error

# Relative error of float32 against float32, and of bfloat16 against float32.
TOLERANCE = 1e-5
BF16_TOLERANCE = 2e-2

SDXL_VAE = {
    "_class_name": "AutoencoderKL",
    "sample_size": 1024,
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
    "scaling_factor": 0.13025,
}
TINY_VAES = {
    "sdxl": {
        **SDXL_VAE,
        "block_out_channels": [16, 32, 48, 48],
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "sample_size": 64,
    },
    "two_levels": {
        "block_out_channels": [16, 24],
        "down_block_types": ["DownEncoderBlock2D"] * 2,
        "up_block_types": ["UpDecoderBlock2D"] * 2,
        "norm_num_groups": 4,
        "latent_channels": 4,
        "sample_size": 16,
        "latents_mean": [0.5, -0.25, 0.1, 0.0],
        "latents_std": [1.5, 2.0, 0.75, 1.0],
        "scaling_factor": 0.5,
    },
    "bare": {
        "in_channels": 1,
        "out_channels": 2,
        "block_out_channels": [8, 24],
        "layers_per_block": 2,
        "down_block_types": ["DownEncoderBlock2D"] * 2,
        "up_block_types": ["UpDecoderBlock2D"] * 2,
        "norm_num_groups": 8,
        "act_fn": "mish",
        "latent_channels": 3,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
        "mid_block_add_attention": False,
        "shift_factor": 0.1,
    },
}


def make_twins(name, **dtypes):
    config = TINY_VAES[name]
    theirs = randomise(TorchVAE(**{k: v for k, v in config.items() if k[0] != "_"}))
    return theirs, load_twin(lambda: AutoencoderKL(config, **dtypes, rngs=UnusedRngs()), theirs)


def randn(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make_inputs(config, size=(24, 16)):
    """Images in torch's layout, and latents of half their size."""
    channels, latent_channels = config.get("in_channels", 3), config.get("latent_channels", 4)
    return randn(2, channels, *size), randn(2, latent_channels, size[0] // 2, size[1] // 2, seed=2)


@pytest.mark.parametrize("name", TINY_VAES)
def test_whole(name):
    theirs, ours = make_twins(name)
    images, latents = make_inputs(TINY_VAES[name])
    with torch.no_grad():
        posterior = theirs.encode(images).latent_dist
        decoded = theirs.decode(latents).sample
    encoded = jax.jit(lambda x: ours.encode(x))(nhwc(images))
    assert relative_error(encoded.mean, nhwc(posterior.mean)) < TOLERANCE
    assert relative_error(encoded.logvar, nhwc(posterior.logvar)) < TOLERANCE
    assert relative_error(encoded.mode(), nhwc(posterior.mode())) < TOLERANCE
    got = jax.jit(lambda x: ours.decode(x))(nhwc(latents))
    assert relative_error(got, nhwc(decoded)) < TOLERANCE


def submodule(module, path):
    for part in path.split("."):
        module = module[int(part)] if part.isdigit() else getattr(module, part)
    return module


def test_groups_are_normalised_with_the_published_epsilon():
    """A wrong one is too small to be seen in the outputs."""
    theirs, ours = make_twins("sdxl")
    norms = [p for p, m in theirs.named_modules() if isinstance(m, torch.nn.GroupNorm)]
    assert len(norms) > 20
    for path in norms:
        assert submodule(ours, path).eps == theirs.get_submodule(path).eps == 1e-6


@pytest.mark.slow  # it says which layer is wrong; that one is, test_whole says
def test_layer_by_layer():
    theirs, ours = make_twins("sdxl")
    seen = {}

    def remember(path):
        def hook(module, args, output):
            seen[path] = (type(module).__name__, args[0], output)

        return hook

    kinds = (
        "ResnetBlock2D Attention GroupNorm Conv2d Linear Downsample2D Upsample2D "
        "DownEncoderBlock2D UpDecoderBlock2D UNetMidBlock2D Encoder Decoder"
    ).split()
    for path, module in theirs.named_modules():
        if type(module).__name__ in kinds:
            module.register_forward_hook(remember(path))
    images, latents = make_inputs(TINY_VAES["sdxl"])
    with torch.no_grad():
        theirs.encode(images)
        theirs.decode(latents)

    worst = {}
    for path, (kind, x, expected) in seen.items():
        if ".attentions." in path and kind == "GroupNorm":
            # diffusers hands it [b, c, h * w].
            x, expected = x[..., None], expected[..., None]
        if path.endswith("downsamplers.0.conv"):
            # diffusers pads before this layer, ours within it.
            x = x[..., :-1, :-1]
        layer = submodule(ours, path)
        x, expected = (nhwc(t) if t.ndim == 4 else t.numpy() for t in (x, expected))
        worst[kind] = max(worst.get(kind, (0, "")), (relative_error(layer(x), expected), path))
    assert set(worst) == set(kinds)
    assert max(worst.values())[0] < TOLERANCE, worst


def test_bfloat16():
    theirs, ours = make_twins("two_levels", dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)
    images, latents = make_inputs(TINY_VAES["two_levels"])
    with torch.no_grad():
        posterior = theirs.encode(images).latent_dist
        decoded = theirs.decode(latents).sample
    encoded, got = jax.jit(lambda x, z: (ours.encode(x), ours.decode(z)))(
        nhwc(images), nhwc(latents)
    )
    assert encoded.mean.dtype == got.dtype == jnp.float32
    assert relative_error(encoded.mean, nhwc(posterior.mean)) < BF16_TOLERANCE
    assert relative_error(got, nhwc(decoded)) < BF16_TOLERANCE


def test_force_upcast_keeps_float16_out_of_the_arithmetic():
    def built(force_upcast):
        config = {**TINY_VAES["two_levels"], "force_upcast": force_upcast}
        kw = {"dtype": jnp.float16, "param_dtype": jnp.float16}
        return nnx.eval_shape(lambda: AutoencoderKL(config, **kw, rngs=UnusedRngs()))

    assert built(True).dtype == built(True).decoder.conv_in.dtype == jnp.float32
    assert built(False).dtype == built(False).decoder.conv_in.dtype == jnp.float16


def test_logvar_is_clamped_and_the_sample_follows_it():
    theirs, ours = make_twins("two_levels")
    bias = torch.tensor([0.0, 0.0, 0.0, 0.0, 100.0, -100.0, 0.0, 0.0])
    with torch.no_grad():
        theirs.quant_conv.bias.copy_(bias)
    ours.quant_conv.bias[...] = jnp.asarray(bias.numpy())
    images, _ = make_inputs(TINY_VAES["two_levels"])
    with torch.no_grad():
        posterior = theirs.encode(images).latent_dist
    encoded = jax.jit(lambda x: ours.encode(x))(nhwc(images))
    assert relative_error(encoded.logvar, nhwc(posterior.logvar)) < TOLERANCE
    assert encoded.logvar[..., 0].min() == 20.0 and encoded.logvar[..., 1].max() == -30.0

    mean, logvar = jnp.full((1, 64, 64, 4), 3.0), jnp.full((1, 64, 64, 4), 2 * np.log(0.5))
    draw = DiagonalGaussianDistribution(mean, logvar).sample(jax.random.key(0))
    assert draw.shape == mean.shape
    np.testing.assert_allclose([draw.mean(), draw.std()], [3.0, 0.5], atol=0.02)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("two_levels", (14, 7)),  # the last column of tiles is narrower than the overlap
        ("two_levels", (8, 8)),  # a single tile
        ("sdxl", (6, 10)),
    ],
)
def test_tiled_decode(name, size):
    theirs, ours = make_twins(name)
    latents = randn(2, 4, *size)
    theirs.enable_tiling()
    with torch.no_grad():
        expected = theirs.decode(latents).sample
    got = jax.jit(lambda z: decode_tiled(ours, z))(nhwc(latents))
    assert relative_error(got, nhwc(expected)) < TOLERANCE


def test_tiled_decode_with_own_sizes():
    theirs, ours = make_twins("two_levels")
    latents = randn(1, 4, 6, 14)
    theirs.enable_tiling()
    theirs.tile_latent_min_size, theirs.tile_sample_min_size = 10, 20
    theirs.tile_overlap_factor = 0.4
    with torch.no_grad():
        expected = theirs.decode(latents).sample
    got = jax.jit(lambda z: decode_tiled(ours, z, tile_size=10, overlap=4))(nhwc(latents))
    assert relative_error(got, nhwc(expected)) < TOLERANCE
    with pytest.raises(ValueError, match="overlap"):
        decode_tiled(ours, nhwc(latents), tile_size=10, overlap=10)


@pytest.mark.parametrize(
    ("name", "tiling"), [("sdxl", False), ("two_levels", False), ("two_levels", True)]
)
def test_decode_images(name, tiling):
    """Against the last lines of diffusers' SDXL pipeline."""
    config = TINY_VAES[name]
    theirs, ours = make_twins(name)
    latents = randn(2, 4, theirs.tile_latent_min_size + 2, 5)
    unscaled = latents / config["scaling_factor"]
    if "latents_mean" in config:
        mean, std = (
            torch.tensor(config[key]).view(1, 4, 1, 1) for key in ("latents_mean", "latents_std")
        )
        unscaled = latents * std / config["scaling_factor"] + mean
    if tiling:
        theirs.enable_tiling()
    with torch.no_grad():
        decoded = theirs.decode(unscaled).sample
    expected = VaeImageProcessor().postprocess(decoded, output_type="np")

    images = jax.jit(lambda z: decode_images(ours, z, tiling=tiling))(nhwc(latents))
    assert images.dtype == jnp.float32
    assert 0.0 <= images.min() < images.max() <= 1.0
    assert relative_error(images, expected) < TOLERANCE


@pytest.mark.parametrize("name", TINY_VAES)
def test_scaling_has_an_inverse(name):
    config = TINY_VAES[name]
    ours = nnx.eval_shape(lambda: AutoencoderKL(config, rngs=UnusedRngs()))
    latents = nhwc(randn(1, config.get("latent_channels", 4), 4, 4))
    assert relative_error(unscale_latents(ours, scale_latents(ours, latents)), latents) < 1e-6
    scaled = {
        "sdxl": latents * 0.13025,
        "two_levels": (latents - config.get("latents_mean", 0)) / config.get("latents_std", 1) / 2,
        "bare": (latents - 0.1) * 0.18215,
    }
    assert relative_error(scale_latents(ours, latents), scaled[name]) < 1e-6


@pytest.mark.slow
def test_memory_is_that_of_one_image_or_one_tile():
    module = nnx.eval_shape(lambda: AutoencoderKL(TINY_VAES["two_levels"], rngs=UnusedRngs()))
    graphdef, state = nnx.split(module)

    def temporaries(batch, **kw):
        decode = jax.jit(lambda state, z: decode_images(nnx.merge(graphdef, state), z, **kw))
        latents = jax.ShapeDtypeStruct((batch, 64, 12, 4), jnp.float32)
        return decode.lower(state, latents).compile().memory_analysis().temp_size_in_bytes

    image = 128 * 24 * 3 * 4
    one = temporaries(1)
    assert temporaries(4) < one + 8 * image  # the images themselves, but no activations
    assert temporaries(1, tiling=True) < one / 2


def test_full_size_keys_and_shapes():
    leaves = parameter_leaves(nnx.eval_shape(lambda: AutoencoderKL(SDXL_VAE, rngs=UnusedRngs())))
    with torch.device("meta"):
        theirs = TorchVAE(**{k: v for k, v in SDXL_VAE.items() if k[0] != "_"}).state_dict()
    ours = {torch_key(path): to_torch_shape(path, leaf.shape) for path, leaf in leaves.items()}
    assert ours == {key: tuple(value.shape) for key, value in theirs.items()}
    assert sum(leaf.size for leaf in leaves.values()) == 83_653_863


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"_class_name": "AutoencoderTiny"}, "_class_name"),
        ({"down_block_types": ["AttnDownEncoderBlock2D"] * 4}, "down_block_types"),
        ({"up_block_types": ["UpDecoderBlock2D"]}, "up_block_types"),
        ({"act_fn": "tanh"}, "tanh"),
        ({"norm_num_groups": 7}, "norm_num_groups"),
        ({"latents_mean": [0.0] * 4}, "latents_std"),
        ({"latents_mean": [0.0] * 3, "latents_std": [1.0] * 3}, "latents_mean"),
    ],
)
def test_unsupported_config_is_named(change, named):
    config = {**TINY_VAES["sdxl"], **change}
    with pytest.raises(ValueError, match=named):
        nnx.eval_shape(lambda: AutoencoderKL(config, rngs=UnusedRngs()))
