"""ControlNet: a copy of the UNet's encoder that reads an image (Zhang et al., arXiv 2302.05543).

Its outputs are added to the UNet's skips and mid block. Built from diffusers' ``config.json``, with
module paths that mirror diffusers' keys. The condition's encoder is that of the released code (3x3
kernels and SiLU), which the weights fit, not that of the paper's section 3.2.
"""

from typing import Any, Unpack

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import ArrayLike, DTypeLike

from persongen_jax.diffusion.conditioning import Conditioning, Residuals
from persongen_jax.models.layers import Conv, LayerOptions
from persongen_jax.models.sdxl.encoder import UNetEncoder
from persongen_jax.models.sdxl.unet import UNet2DConditionModel
from persongen_jax.models.sdxl.unet_config import DEFAULTS, REQUIRED, complete_config

WIDTHS = [16, 32, 96, 256]  # of the control image's encoder
# diffusers' defaults and supported values, where ControlNetModel's differ from the UNet's.
OWN_DEFAULTS = {
    "conditioning_channels": 3,
    "controlnet_conditioning_channel_order": "rgb",
    "conditioning_embedding_out_channels": WIDTHS,
    "global_pool_conditions": False,
}
_OF_THE_UP_PATH = ("out_channels", "up_block_types", "conv_out_kernel")
CONTROLNET_DEFAULTS = {
    **{key: value for key, value in DEFAULTS.items() if key not in _OF_THE_UP_PATH},
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    **OWN_DEFAULTS,
}
CONTROLNET_REQUIRED = {
    **REQUIRED,
    "conv_in_kernel": (3,),
    "mid_block_type": ("UNetMidBlock2DCrossAttn", "UNetMidBlock2D"),
    "controlnet_conditioning_channel_order": ("rgb", "bgr"),
}


def controlnet_config(config: dict) -> dict:
    """A ControlNet's config.json completed; null counts as absent, as in InstantID's.

    Raises:
        ValueError: a value that is not implemented.
    """
    said = {key: value for key, value in config.items() if value is not None}
    return complete_config(said, CONTROLNET_DEFAULTS, CONTROLNET_REQUIRED)


class ControlNetConditioningEmbedding(nnx.Module):
    """Encodes the control image [b, h, w, 3] to [b, h / 8, w / 8, channels]."""

    def __init__(self, config: dict, **kw: Unpack[LayerOptions]):
        widths = config["conditioning_embedding_out_channels"]
        self.conv_in = Conv(config["conditioning_channels"], widths[0], 3, padding=1, **kw)
        self.blocks = nnx.List([])
        for before, after in zip(widths, widths[1:], strict=False):
            self.blocks.append(Conv(before, before, 3, padding=1, **kw))
            self.blocks.append(Conv(before, after, 3, padding=1, strides=2, **kw))
        self.conv_out = _zero(Conv(widths[-1], config["block_out_channels"][0], 3, padding=1, **kw))

    def __call__(self, image: jax.Array) -> jax.Array:
        x = jax.nn.silu(self.conv_in(image))
        for layer in self.blocks:
            x = jax.nn.silu(layer(x))
        return self.conv_out(x)


class ControlNetModel(UNetEncoder):
    """Residuals for a UNet from noisy latents, its conditioning, and a control image.

    Args:
        config: contents of a ControlNet's ``config.json``.
        dtype: of the computation; param_dtype: of the stored weights.

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
        config = controlnet_config(config)
        kw: LayerOptions = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        super().__init__(config, **kw)
        self.controlnet_cond_embedding = ControlNetConditioningEmbedding(config, **kw)
        channels = config["block_out_channels"]
        widths, last = [channels[0]], len(channels) - 1
        for level, width in enumerate(channels):
            downsampled = 0 if level == last else 1
            widths += [width] * (config["layers_per_block"][level] + downsampled)
        self.controlnet_down_blocks = nnx.List([_zero(Conv(w, w, 1, **kw)) for w in widths])
        self.controlnet_mid_block = _zero(Conv(channels[-1], channels[-1], 1, **kw))

    @property
    def factor(self) -> int:
        """Side of the control image in pixels over side of its encoding."""
        return 2 ** (len(self.config["conditioning_embedding_out_channels"]) - 1)

    def __call__(
        self,
        sample: jax.Array,
        timesteps: ArrayLike,
        conditioning: Conditioning,
        image: jax.Array,
        scale: jax.Array | None = None,
        *,
        guess_mode: bool = False,
    ) -> Residuals:
        """The residuals of noisy latents [b, h, w, c] and a control image [b, 8 h, 8 w, 3].

        Args:
            timesteps: [b] or scalar.
            conditioning: its cross-attention reads the stream "text".
            image: RGB in 0..1.
            scale: [b] factor of all residuals; None: 1.
            guess_mode: weaken them from 1 at the mid block to 0.1 at the first skip (the released
                code's; not in the paper). A net that pools its residuals ignores it, as diffusers'.
        """
        if self.config["controlnet_conditioning_channel_order"] == "bgr":
            image = image[..., ::-1]
        temb = self.embed_time(timesteps, conditioning, sample.shape[0])
        x = self.conv_in(sample) + self.controlnet_cond_embedding(image)
        x, skips = self.encode(x, temb, conditioning)
        down = [layer(skip) for layer, skip in zip(self.controlnet_down_blocks, skips, strict=True)]
        residuals = [*down, self.controlnet_mid_block(x)]
        if guess_mode and not self.config["global_pool_conditions"]:
            factors = jnp.logspace(-1, 0, len(residuals))
            residuals = [r * f.astype(r.dtype) for r, f in zip(residuals, factors, strict=True)]
        if scale is not None:
            residuals = [r * scale[:, None, None, None].astype(r.dtype) for r in residuals]
        if self.config["global_pool_conditions"]:
            residuals = [r.mean((1, 2), keepdims=True) for r in residuals]
        return Residuals(residuals[:-1], residuals[-1])


def controlnet_from_unet(
    unet: UNet2DConditionModel, own: dict[str, Any] | None = None, *, rngs: nnx.Rngs
) -> ControlNetModel:
    """A ControlNet to be trained: the encoder a float32 copy of the UNet's, the rest fresh.

    As diffusers' ``from_unet``: the control image's encoder ends in zeros, and so do all residuals,
    so that the UNet computes what it did.

    Args:
        own: settings of the ControlNet that differ from OWN_DEFAULTS.
    """
    config = {key: unet.config[key] for key in CONTROLNET_DEFAULTS if key in unet.config}
    config = {**_plain(config), **OWN_DEFAULTS, **(own or {})}
    kw: dict[str, Any] = {"dtype": unet.dtype, "param_dtype": jnp.float32, "rngs": rngs}
    net = ControlNetModel(config, **kw)
    for name in ("conv_in", "time_embedding", "add_embedding", "down_blocks", "mid_block"):
        source, target = getattr(unet, name), getattr(net, name)
        if source is not None:
            # Without what methods have added to the UNet: branches, LoRA.
            there = set(nnx.to_flat_state(nnx.state(target, nnx.Param)).paths)
            flat = nnx.to_flat_state(nnx.state(source, nnx.Param))
            kept = [
                (path, leaf.replace(_float32(leaf.get_value())))
                for path, leaf in flat
                if path in there
            ]
            nnx.update(target, nnx.from_flat_state(kept))
    return net


def _float32(array):
    # Always its own buffer: training donates the trained ones and keeps the frozen ones.
    return jnp.array(array, jnp.float32, copy=True)


def _plain(config: dict) -> dict:
    """FrozenConfigDict's tuples as lists, for JSON."""
    return {key: list(v) if isinstance(v, tuple) else v for key, v in config.items()}


def _zero(layer: Conv) -> Conv:
    """The paper's zero convolution."""
    for leaf in (layer.kernel, layer.bias):
        if leaf is not None:
            leaf.set_value(jnp.zeros_like(leaf[...]))
    return layer
