"""UNet2DConditionModel: the denoiser of Stable Diffusion 1.5, SDXL and its refiner.

Built from diffusers' ``config.json`` (every size comes from there), with module paths that mirror
diffusers' keys. SDXL: Podell et al., arXiv 2307.01952, section 2.
"""

from collections.abc import Callable
from typing import Any, Unpack

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import ArrayLike, DTypeLike
from ml_collections import FrozenConfigDict

from persongen_jax.diffusion.conditioning import Conditioning
from persongen_jax.models.attention import Streams, Transformer2DModel
from persongen_jax.models.embeddings import TimestepEmbedding, sinusoidal_embedding
from persongen_jax.models.layers import Conv, GroupNorm, LayerOptions
from persongen_jax.models.ops import activation
from persongen_jax.models.resnet import Downsample2D, ResnetBlock2D, Upsample2D

# diffusers' defaults for keys that a config.json may omit.
DEFAULTS = {
    "in_channels": 4,
    "out_channels": 4,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "block_out_channels": [320, 640, 1280, 1280],
    "layers_per_block": 2,
    "act_fn": "silu",
    "norm_num_groups": 32,
    "norm_eps": 1e-5,
    "cross_attention_dim": 1280,
    "transformer_layers_per_block": 1,
    "attention_head_dim": 8,
    "use_linear_projection": False,
    "addition_embed_type": None,
    "addition_time_embed_dim": None,
    "projection_class_embeddings_input_dim": None,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
}

# Keys for which only these values are implemented; diffusers' other values are refused by name.
REQUIRED = {
    "center_input_sample": (False,),
    "mid_block_type": ("UNetMidBlock2DCrossAttn",),
    "only_cross_attention": (False,),
    "downsample_padding": (1,),
    "mid_block_scale_factor": (1, 1.0),
    "dropout": (0, 0.0),
    "reverse_transformer_layers_per_block": (None,),
    "encoder_hid_dim": (None,),
    "encoder_hid_dim_type": (None,),
    "num_attention_heads": (None,),
    "dual_cross_attention": (False,),
    "class_embed_type": (None,),
    "addition_embed_type": (None, "text_time"),
    "num_class_embeds": (None,),
    "resnet_time_scale_shift": ("default",),
    "resnet_skip_time_act": (False,),
    "resnet_out_scale_factor": (1, 1.0),
    "time_embedding_type": ("positional",),
    "time_embedding_dim": (None,),
    "time_embedding_act_fn": (None,),
    "timestep_post_act": (None,),
    "time_cond_proj_dim": (None,),
    "attention_type": ("default",),
    "class_embeddings_concat": (False,),
    "mid_block_only_cross_attention": (None, False),
    "cross_attention_norm": (None,),
}

# Block types, and whether a transformer follows each of their resnets.
BLOCK_TYPES = {
    "DownBlock2D": False,
    "CrossAttnDownBlock2D": True,
    "UNetMidBlock2DCrossAttn": True,
    "UpBlock2D": False,
    "CrossAttnUpBlock2D": True,
}


def complete_config(config: dict) -> dict:
    """``config`` with diffusers' defaults filled in; ValueError on a value not implemented."""
    for key, allowed in REQUIRED.items():
        if key in config and config[key] not in allowed:
            raise ValueError(
                f"UNet config: {key}={config[key]!r} is not supported; supported: "
                + ", ".join(repr(value) for value in allowed)
            )
    config = {**DEFAULTS, **config}
    levels = len(config["block_out_channels"])
    for key in ("down_block_types", "up_block_types"):
        if len(config[key]) != levels:
            raise ValueError(
                f"UNet config: {key} has {len(config[key])} entries, block_out_channels {levels}"
            )
    for key in (
        "layers_per_block",
        "cross_attention_dim",
        "transformer_layers_per_block",
        "attention_head_dim",
    ):
        if not isinstance(config[key], int) and len(config[key]) != levels:
            raise ValueError(
                f"UNet config: {key} has {len(config[key])} entries, block_out_channels {levels}"
            )
        if isinstance(config[key], int):
            config[key] = [config[key]] * levels
    return config


class Block(nnx.Module):
    """What the blocks share: how they call their layers.

    With ``remat`` the backward pass recomputes a layer's activations instead of storing them.
    """

    remat = False

    def run(self, layer: Callable[..., jax.Array], *inputs: Any) -> jax.Array:
        if not self.remat:
            return layer(*inputs)
        return jax.checkpoint(lambda *inputs: layer(*inputs))(*inputs)


class DownBlock(Block):
    """``DownBlock2D`` and ``CrossAttnDownBlock2D``: resnets, optionally each with a transformer."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        num_layers: int,
        resnet: dict[str, Any],
        transformer: dict[str, Any] | None,
        downsample: bool,
        **kw: Unpack[LayerOptions],
    ):
        channels = [in_channels] + [out_channels] * (num_layers - 1)
        self.resnets = nnx.List([ResnetBlock2D(c, out_channels, **resnet, **kw) for c in channels])
        self.attentions = _transformers(out_channels, num_layers, transformer, kw)
        self.downsamplers = nnx.List([Downsample2D(out_channels, **kw)]) if downsample else None

    def __call__(
        self, x: jax.Array, temb: jax.Array, streams: Streams
    ) -> tuple[jax.Array, list[jax.Array]]:
        """[b, h, w, in] to [b, h / 2, w / 2, out], and the list of skips for the up path."""
        outputs = []
        for i, resnet in enumerate(self.resnets):
            x = self.run(resnet, x, temb)
            if self.attentions is not None:
                x = self.run(self.attentions[i], x, streams)
            outputs.append(x)
        if self.downsamplers is not None:
            x = self.downsamplers[0](x)
            outputs.append(x)
        return x, outputs


class MidBlock(Block):
    """``UNetMidBlock2DCrossAttn``: resnet, transformer, resnet."""

    def __init__(
        self,
        channels: int,
        *,
        resnet: dict[str, Any],
        transformer: dict[str, Any] | None,
        **kw: Unpack[LayerOptions],
    ):
        self.resnets = nnx.List(
            [ResnetBlock2D(channels, channels, **resnet, **kw) for _ in range(2)]
        )
        self.attentions = _transformers(channels, 1, transformer, kw)

    def __call__(self, x: jax.Array, temb: jax.Array, streams: Streams) -> jax.Array:
        x = self.run(self.resnets[0], x, temb)
        x = self.run(self.attentions[0], x, streams)
        return self.run(self.resnets[1], x, temb)


class UpBlock(Block):
    """``UpBlock2D``, ``CrossAttnUpBlock2D``: every resnet also reads a skip of the down path."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        prev_channels: int,
        *,
        num_layers: int,
        resnet: dict[str, Any],
        transformer: dict[str, Any] | None,
        upsample: bool,
        **kw: Unpack[LayerOptions],
    ):
        hidden = [prev_channels] + [out_channels] * (num_layers - 1)
        skips = [out_channels] * (num_layers - 1) + [in_channels]
        self.resnets = nnx.List(
            [
                ResnetBlock2D(c + skip, out_channels, **resnet, **kw)
                for c, skip in zip(hidden, skips, strict=True)
            ]
        )
        self.attentions = _transformers(out_channels, num_layers, transformer, kw)
        self.upsamplers = nnx.List([Upsample2D(out_channels, **kw)]) if upsample else None

    def __call__(
        self, x: jax.Array, skips: list[jax.Array], temb: jax.Array, streams: Streams
    ) -> jax.Array:
        """``skips``: the down path's outputs; this block pops its own off the end."""
        for i, resnet in enumerate(self.resnets):
            x = self.run(resnet, jnp.concatenate([x, skips.pop()], axis=-1), temb)
            if self.attentions is not None:
                x = self.run(self.attentions[i], x, streams)
        if self.upsamplers is not None:
            x = self.upsamplers[0](x, size=skips[-1].shape[1:3])
        return x


def _transformers(channels, num_layers, transformer, kw):
    if transformer is None:
        return None
    return nnx.List([Transformer2DModel(channels, **transformer, **kw) for _ in range(num_layers)])


class UNet2DConditionModel(nnx.Module):
    """Predicts noise (or v, or x0) from noisy latents.

    Args:
        config: contents of diffusers' ``unet/config.json``.
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
        config = complete_config(config)
        self.config = FrozenConfigDict(config)
        self.dtype = dtype
        kw: LayerOptions = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        channels = config["block_out_channels"]
        levels = len(channels)
        layers = config["layers_per_block"]
        time_embed_dim = channels[0] * 4
        groups, eps, act = config["norm_num_groups"], config["norm_eps"], config["act_fn"]
        resnet = {"temb_channels": time_embed_dim, "groups": groups, "eps": eps, "act": act}

        def transformer(block_type, level):
            if block_type not in BLOCK_TYPES:
                raise ValueError(
                    f"UNet config: block type {block_type!r} is not supported; "
                    f"supported: {', '.join(BLOCK_TYPES)}"
                )
            if not BLOCK_TYPES[block_type]:
                return None
            return {
                "heads": config["attention_head_dim"][level],
                "num_layers": config["transformer_layers_per_block"][level],
                "cross_attention_dim": config["cross_attention_dim"][level],
                "groups": groups,
                "use_linear_projection": config["use_linear_projection"],
            }

        kernel = config["conv_in_kernel"]
        self.conv_in = Conv(
            config["in_channels"], channels[0], kernel, padding=(kernel - 1) // 2, **kw
        )
        self.time_embedding = TimestepEmbedding(channels[0], time_embed_dim, act=act, **kw)
        self.add_embedding = nnx.data(None)
        if config["addition_embed_type"] == "text_time":
            self.add_embedding = TimestepEmbedding(
                config["projection_class_embeddings_input_dim"], time_embed_dim, **kw
            )

        self.down_blocks = nnx.List([])
        for i, block_type in enumerate(config["down_block_types"]):
            self.down_blocks.append(
                DownBlock(
                    channels[max(i - 1, 0)],
                    channels[i],
                    num_layers=layers[i],
                    resnet=resnet,
                    transformer=transformer(block_type, i),
                    downsample=i < levels - 1,
                    **kw,
                )
            )

        self.mid_block = MidBlock(
            channels[-1],
            resnet=resnet,
            transformer=transformer(config["mid_block_type"], levels - 1),
            **kw,
        )

        self.up_blocks = nnx.List([])
        for i, block_type in enumerate(config["up_block_types"]):
            level = levels - 1 - i
            self.up_blocks.append(
                UpBlock(
                    channels[max(level - 1, 0)],
                    channels[level],
                    channels[min(level + 1, levels - 1)],
                    num_layers=layers[level] + 1,
                    resnet=resnet,
                    transformer=transformer(block_type, level),
                    upsample=level > 0,
                    **kw,
                )
            )

        self.conv_norm_out = GroupNorm(groups, channels[0], eps=eps, **kw)
        kernel = config["conv_out_kernel"]
        self.conv_out = Conv(
            channels[0], config["out_channels"], kernel, padding=(kernel - 1) // 2, **kw
        )

    def set_remat(self, remat: bool) -> None:
        """Whether the backward pass recomputes activations: less memory, more time."""
        for block in (*self.down_blocks, self.mid_block, *self.up_blocks):
            block.remat = remat

    def embed_time(self, timesteps: jax.Array, conditioning: Conditioning) -> jax.Array:
        """[b] timesteps (0..999), pooled prompt and time_ids to one embedding [b, 4 * channels]."""
        config = self.config
        frequencies = {
            "flip_sin_to_cos": config["flip_sin_to_cos"],
            "freq_shift": config["freq_shift"],
        }
        t = sinusoidal_embedding(timesteps, config["block_out_channels"][0], **frequencies)
        temb = self.time_embedding(t)
        if self.add_embedding is not None:
            pooled, time_ids = conditioning.pooled_prompt_embeds, conditioning.time_ids
            if pooled is None or time_ids is None:
                raise ValueError(
                    "this UNet has text_time embeddings: Conditioning needs pooled_prompt_embeds "
                    "and time_ids"
                )
            size = config["addition_time_embed_dim"]
            ids = sinusoidal_embedding(time_ids.reshape(-1), size, **frequencies)
            ids = ids.reshape(time_ids.shape[0], -1)
            pooled = pooled.astype(jnp.float32)
            temb = temb + self.add_embedding(jnp.concatenate([pooled, ids], axis=-1))
        return temb

    def __call__(
        self, sample: jax.Array, timesteps: ArrayLike, conditioning: Conditioning
    ) -> jax.Array:
        """Noisy latents [b, h, w, in_channels], timesteps [b] or scalar: [b, h, w, out_channels].

        Runs in ``dtype`` and returns float32.
        """
        timesteps = jnp.broadcast_to(jnp.asarray(timesteps), sample.shape[:1])
        temb = self.embed_time(timesteps, conditioning)
        streams = conditioning.streams

        x = self.conv_in(sample)
        skips = [x]
        for block in self.down_blocks:
            x, outputs = block(x, temb, streams)
            skips.extend(outputs)
        x = self.mid_block(x, temb, streams)
        for block in self.up_blocks:
            x = block(x, skips, temb, streams)
        x = activation(self.config["act_fn"])(self.conv_norm_out(x))
        return self.conv_out(x).astype(jnp.float32)
