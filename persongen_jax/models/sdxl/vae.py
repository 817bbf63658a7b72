"""AutoencoderKL: images to latents and back (Rombach et al., arXiv 2112.10752, section 3.1).

Built from diffusers' ``config.json``, with module paths that mirror diffusers' keys. SDXL's is the
same network with other weights (arXiv 2307.01952, section 2.4). Arrays are NHWC; images are in
[-1, 1].

The functions at the end are what pipelines call: scaling between the autoencoder's latents and
the diffusion model's, and decoding in bounded memory.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Unpack

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from ml_collections import FrozenConfigDict

from persongen_jax.models.layers import Conv, GroupNorm, LayerOptions, at_least_float32
from persongen_jax.models.ops import activation
from persongen_jax.models.resnet import Downsample2D, ResnetBlock2D, Upsample2D
from persongen_jax.models.sdxl.vae_tiling import decode_tiled
from persongen_jax.models.spatial_attention import SpatialAttention

EPS = 1e-6

# diffusers' defaults for keys that a config.json may omit.
DEFAULTS = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ["DownEncoderBlock2D"],
    "up_block_types": ["UpDecoderBlock2D"],
    "block_out_channels": [64],
    "layers_per_block": 1,
    "act_fn": "silu",
    "latent_channels": 4,
    "norm_num_groups": 32,
    "sample_size": 32,
    "scaling_factor": 0.18215,
    "shift_factor": None,
    "latents_mean": None,
    "latents_std": None,
    "force_upcast": True,
    "use_quant_conv": True,
    "use_post_quant_conv": True,
    "mid_block_add_attention": True,
}
BLOCK_TYPES = {"down_block_types": "DownEncoderBlock2D", "up_block_types": "UpDecoderBlock2D"}


def complete_config(config: dict) -> dict:
    """``config`` with diffusers' defaults filled in; ValueError on a value not implemented."""
    kind = config.get("_class_name", "AutoencoderKL")
    if kind != "AutoencoderKL":
        raise ValueError(f"VAE config: _class_name={kind!r} is not supported; use an AutoencoderKL")
    config = {key: config.get(key, default) for key, default in DEFAULTS.items()}
    levels = len(config["block_out_channels"])
    for key, supported in BLOCK_TYPES.items():
        for name in config[key]:
            if name != supported:
                raise ValueError(
                    f"VAE config: {key} has {name!r}, which is not supported; use {supported!r}"
                )
        if len(config[key]) != levels:
            raise ValueError(
                f"VAE config: {key} has {len(config[key])} entries, block_out_channels {levels}"
            )
    if (config["latents_mean"] is None) != (config["latents_std"] is None):
        raise ValueError("VAE config: latents_mean and latents_std go together; give both or none")
    for key in ("latents_mean", "latents_std"):
        if config[key] is not None and len(config[key]) != config["latent_channels"]:
            raise ValueError(
                f"VAE config: {key} has {len(config[key])} entries, "
                f"latent_channels={config['latent_channels']}"
            )
    return config


class DiagonalGaussianDistribution(NamedTuple):
    """The encoder's posterior over latents: mean and logvar, each float32 [b, h, w, c]."""

    mean: jax.Array
    logvar: jax.Array

    def sample(self, key: jax.Array) -> jax.Array:
        """One draw per image, [b, h, w, c]."""
        noise = jax.random.normal(key, self.mean.shape, self.mean.dtype)
        return self.mean + jnp.exp(0.5 * self.logvar) * noise

    def mode(self) -> jax.Array:
        """The most likely latents, [b, h, w, c]."""
        return self.mean


def run(layer: Callable[[jax.Array], jax.Array], x: jax.Array, remat: bool) -> jax.Array:
    """A layer; ``remat``: the backward pass recomputes its activations instead of storing them."""
    return jax.checkpoint(lambda x: layer(x))(x) if remat else layer(x)


class VAEMidBlock(nnx.Module):
    """Resnet, attention unless the config omits it, resnet: [b, h, w, c] to the same."""

    def __init__(
        self,
        channels: int,
        *,
        resnet: dict[str, Any],
        add_attention: bool,
        **kw: Unpack[LayerOptions],
    ):
        self.resnets = nnx.List(
            [ResnetBlock2D(channels, channels, **resnet, **kw) for _ in range(2)]
        )
        self.attentions = nnx.data(None)
        if add_attention:
            self.attentions = nnx.List(
                [SpatialAttention(channels, heads=1, groups=resnet["groups"], eps=EPS, **kw)]
            )

    def __call__(self, x: jax.Array, *, remat: bool = False) -> jax.Array:
        x = run(self.resnets[0], x, remat)
        if self.attentions is not None:
            x = run(self.attentions[0], x, remat)
        return run(self.resnets[1], x, remat)


class DownEncoderBlock2D(nnx.Module):
    """Resnets, then half the side unless it is the last block."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        num_layers: int,
        resnet: dict[str, Any],
        downsample: bool,
        **kw: Unpack[LayerOptions],
    ):
        channels = [in_channels] + [out_channels] * (num_layers - 1)
        self.resnets = nnx.List([ResnetBlock2D(c, out_channels, **resnet, **kw) for c in channels])
        self.downsamplers = nnx.data(None)
        if downsample:
            self.downsamplers = nnx.List([Downsample2D(out_channels, padding=0, **kw)])

    def __call__(self, x: jax.Array) -> jax.Array:
        for resnet in self.resnets:
            x = resnet(x)
        return x if self.downsamplers is None else self.downsamplers[0](x)


class UpDecoderBlock2D(nnx.Module):
    """Resnets, then double the side unless it is the last block."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        num_layers: int,
        resnet: dict[str, Any],
        upsample: bool,
        **kw: Unpack[LayerOptions],
    ):
        channels = [in_channels] + [out_channels] * (num_layers - 1)
        self.resnets = nnx.List([ResnetBlock2D(c, out_channels, **resnet, **kw) for c in channels])
        self.upsamplers = nnx.data(None)
        if upsample:
            self.upsamplers = nnx.List([Upsample2D(out_channels, **kw)])

    def __call__(self, x: jax.Array, *, remat: bool = False) -> jax.Array:
        for resnet in self.resnets:
            x = run(resnet, x, remat)
        return x if self.upsamplers is None else run(self.upsamplers[0], x, remat)


def _resnet_settings(config):
    return {"groups": config["norm_num_groups"], "eps": EPS, "act": config["act_fn"]}


class Encoder(nnx.Module):
    """Images [b, H, W, in_channels] to moments [b, h, w, 2 * latent_channels]."""

    def __init__(self, config: dict[str, Any], **kw: Unpack[LayerOptions]):
        channels, resnet = config["block_out_channels"], _resnet_settings(config)
        self.conv_in = Conv(config["in_channels"], channels[0], 3, padding=1, **kw)
        self.down_blocks = nnx.List([])
        for i in range(len(channels)):
            self.down_blocks.append(
                DownEncoderBlock2D(
                    channels[max(i - 1, 0)],
                    channels[i],
                    num_layers=config["layers_per_block"],
                    resnet=resnet,
                    downsample=i < len(channels) - 1,
                    **kw,
                )
            )
        self.mid_block = VAEMidBlock(
            channels[-1], resnet=resnet, add_attention=config["mid_block_add_attention"], **kw
        )
        self.conv_norm_out = GroupNorm(resnet["groups"], channels[-1], eps=EPS, **kw)
        self.conv_out = Conv(channels[-1], 2 * config["latent_channels"], 3, padding=1, **kw)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.conv_in(x)
        for block in self.down_blocks:
            x = block(x)
        x = self.mid_block(x)
        # Whatever act_fn says, the last activation is silu in every AutoencoderKL.
        return self.conv_out(jax.nn.silu(self.conv_norm_out(x)))


class Decoder(nnx.Module):
    """Latents [b, h, w, latent_channels] to images [b, H, W, out_channels]."""

    def __init__(self, config: dict[str, Any], **kw: Unpack[LayerOptions]):
        channels, resnet = config["block_out_channels"][::-1], _resnet_settings(config)
        self.conv_in = Conv(config["latent_channels"], channels[0], 3, padding=1, **kw)
        self.mid_block = VAEMidBlock(
            channels[0], resnet=resnet, add_attention=config["mid_block_add_attention"], **kw
        )
        self.up_blocks = nnx.List([])
        for i in range(len(channels)):
            self.up_blocks.append(
                UpDecoderBlock2D(
                    channels[max(i - 1, 0)],
                    channels[i],
                    num_layers=config["layers_per_block"] + 1,
                    resnet=resnet,
                    upsample=i < len(channels) - 1,
                    **kw,
                )
            )
        self.conv_norm_out = GroupNorm(resnet["groups"], channels[-1], eps=EPS, **kw)
        self.conv_out = Conv(channels[-1], config["out_channels"], 3, padding=1, **kw)

    def __call__(self, x: jax.Array, *, remat: bool = False) -> jax.Array:
        x = self.mid_block(self.conv_in(x), remat=remat)
        for block in self.up_blocks:
            x = block(x, remat=remat)
        return run(self._finish, x, remat)

    def _finish(self, x):
        return self.conv_out(jax.nn.silu(self.conv_norm_out(x)))


class AutoencoderKL(nnx.Module):
    """Images to a Gaussian over latents, and latents to images.

    Args:
        config: contents of diffusers' ``vae/config.json``.
        dtype: of the computation; param_dtype: of the stored weights. With the config's
            ``force_upcast``, float16 becomes float32, because SDXL's activations overflow it;
            bfloat16 has the range and is left alone.

    Raises:
        ValueError: a config value that is not implemented, or sizes that do not fit.
    """

    def __init__(
        self,
        config: dict,
        *,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        config = complete_config(config)
        activation(config["act_fn"])  # fails now if unknown, not at the first call
        if config["force_upcast"] and jnp.dtype(dtype) == jnp.float16:
            dtype = jnp.float32
        self.config = FrozenConfigDict(config)
        self.dtype = dtype
        kw: LayerOptions = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        latent_channels = config["latent_channels"]
        self.encoder = Encoder(config, **kw)
        self.decoder = Decoder(config, **kw)
        self.quant_conv = nnx.data(None)
        if config["use_quant_conv"]:
            self.quant_conv = Conv(2 * latent_channels, 2 * latent_channels, 1, **kw)
        self.post_quant_conv = nnx.data(None)
        if config["use_post_quant_conv"]:
            self.post_quant_conv = Conv(latent_channels, latent_channels, 1, **kw)

    @property
    def vae_scale_factor(self) -> int:
        """Pixels per latent, along one side."""
        return 2 ** (len(self.config["block_out_channels"]) - 1)

    def encode(self, images: jax.Array) -> DiagonalGaussianDistribution:
        """Images [b, H, W, in_channels] in [-1, 1] to a Gaussian over [b, h, w, latent_channels].

        The latents are the autoencoder's own; the diffusion model's come from
        :func:`scale_latents`.
        """
        moments = self.encoder(images)
        if self.quant_conv is not None:
            moments = self.quant_conv(moments)
        mean, logvar = jnp.split(moments.astype(jnp.float32), 2, axis=-1)
        return DiagonalGaussianDistribution(mean, jnp.clip(logvar, -30.0, 20.0))

    def decode(self, latents: jax.Array, *, remat: bool = False) -> jax.Array:
        """The autoencoder's latents [b, h, w, latent_channels] to float32 [b, H, W, out_channels].

        Values lie around [-1, 1] and are not clamped.

        Args:
            remat: a backward pass recomputes the activations of one layer at a time.
        """
        if self.post_quant_conv is not None:
            latents = self.post_quant_conv(latents)
        return at_least_float32(self.decoder(latents, remat=remat))


def scale_latents(vae: AutoencoderKL, latents: jax.Array) -> jax.Array:
    """The autoencoder's latents [b, h, w, c] to the diffusion model's, about unit variance."""
    config = vae.config
    if config["shift_factor"] is not None:
        latents = latents - config["shift_factor"]
    if config["latents_mean"] is not None:
        mean, std = jnp.asarray(config["latents_mean"]), jnp.asarray(config["latents_std"])
        latents = (latents - mean) / std
    return latents * config["scaling_factor"]


def unscale_latents(vae: AutoencoderKL, latents: jax.Array) -> jax.Array:
    """The inverse of :func:`scale_latents`, [b, h, w, c] in float32."""
    config = vae.config
    latents = at_least_float32(latents) / config["scaling_factor"]
    if config["latents_mean"] is not None:
        mean, std = jnp.asarray(config["latents_mean"]), jnp.asarray(config["latents_std"])
        latents = latents * std + mean
    if config["shift_factor"] is not None:
        latents = latents + config["shift_factor"]
    return latents


def decode_batch(vae: AutoencoderKL, latents: jax.Array) -> jax.Array:
    """:func:`decode_images` of all images at once, for losses: batches stay on their devices.

    Between the passes it keeps the input of each of the decoder's layers alone.
    """
    images = vae.decode(unscale_latents(vae, latents), remat=True)
    return jnp.clip(images / 2 + 0.5, 0.0, 1.0)


def decode_images(
    vae: AutoencoderKL, latents: jax.Array, *, tiling: bool = False, tile_size: int | None = None
) -> jax.Array:
    """The diffusion model's latents to finished images, one image at a time.

    Peak memory is that of one image, or with ``tiling`` of one tile, whatever the batch.

    Args:
        latents: [b, h, w, latent_channels], as scaled for the diffusion model.
        tiling: decode large images by :func:`decode_tiled`.
        tile_size: side of a tile in latents; by default the config's.

    Returns:
        float32 [b, H, W, out_channels] in [0, 1].
    """
    if tiling:

        def decode(image_latents):
            return decode_tiled(vae, image_latents, tile_size)
    else:
        decode = vae.decode
    images = jax.lax.map(lambda one: decode(one[None])[0], unscale_latents(vae, latents))
    return jnp.clip(images / 2 + 0.5, 0.0, 1.0)
