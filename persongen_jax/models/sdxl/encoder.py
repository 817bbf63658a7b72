"""The half of the UNet that a ControlNet has too: time, first convolution, down path, mid block.

SDXL: Podell et al., arXiv 2307.01952, section 2.
"""

from typing import Any, Unpack

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import ArrayLike
from ml_collections import FrozenConfigDict

from persongen_jax.diffusion.conditioning import Conditioning
from persongen_jax.models.embeddings import TimestepEmbedding, sinusoidal_embedding
from persongen_jax.models.layers import Conv, LayerOptions
from persongen_jax.models.sdxl.blocks import DownBlock, MidBlock
from persongen_jax.models.sdxl.unet_config import BLOCK_TYPES


class UNetEncoder(nnx.Module):
    """What :class:`UNet2DConditionModel` and :class:`ControlNetModel` share.

    Args:
        config: contents of ``config.json``, completed.
        options: dtype, of the computation; param_dtype, of the stored weights; rngs.
    """

    def __init__(self, config: dict, **options: Unpack[LayerOptions]):
        self.config = FrozenConfigDict(config)
        self.dtype = options["dtype"]
        channels = config["block_out_channels"]
        levels, time_embed_dim = len(channels), channels[0] * 4
        kernel = config["conv_in_kernel"]
        self.conv_in = Conv(
            config["in_channels"], channels[0], kernel, padding=(kernel - 1) // 2, **options
        )
        self.time_embedding = TimestepEmbedding(
            channels[0], time_embed_dim, act=config["act_fn"], **options
        )
        self.add_embedding = nnx.data(None)
        if config["addition_embed_type"] == "text_time":
            self.add_embedding = TimestepEmbedding(
                config["projection_class_embeddings_input_dim"], time_embed_dim, **options
            )
        self.down_blocks = nnx.List([])
        for i, block_type in enumerate(config["down_block_types"]):
            self.down_blocks.append(
                DownBlock(
                    channels[max(i - 1, 0)],
                    channels[i],
                    num_layers=config["layers_per_block"][i],
                    downsample=i < levels - 1,
                    **block_layers(config, block_type, i),
                    **options,
                )
            )
        middle = block_layers(config, config["mid_block_type"], levels - 1)
        self.mid_block = MidBlock(channels[-1], **middle, **options)

    def set_remat(self, remat: bool) -> None:
        """Whether the backward pass recomputes activations: less memory, more time."""
        for block in (*self.down_blocks, self.mid_block):
            block.remat = remat

    def embed_time(self, timesteps: ArrayLike, conditioning: Conditioning, rows: int) -> jax.Array:
        """Timesteps (0..999, [b] or one), pooled prompt and time_ids: [b, 4 * channels].

        Args:
            rows: b.
        """
        config = self.config
        timesteps = jnp.broadcast_to(jnp.asarray(timesteps), (rows,))
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

    def encode(
        self, x: jax.Array, temb: jax.Array, conditioning: Conditioning
    ) -> tuple[jax.Array, list[jax.Array]]:
        """From ``conv_in``'s output: that of the mid block, and the skips, conv_in's first."""
        streams, skips = conditioning.streams, [x]
        for block in self.down_blocks:
            x, outputs = block(x, temb, streams)
            skips.extend(outputs)
        return self.mid_block(x, temb, streams), skips


def block_layers(config: dict, block_type: str, level: int) -> dict[str, Any]:
    """{"resnet": …, "transformer": … or None}: the settings of a block's layers.

    Raises:
        ValueError: an unknown block type.
    """
    if block_type not in BLOCK_TYPES:
        raise ValueError(
            f"UNet config: block type {block_type!r} is not supported; "
            f"supported: {', '.join(BLOCK_TYPES)}"
        )
    groups, channels = config["norm_num_groups"], config["block_out_channels"]
    resnet = {
        "temb_channels": channels[0] * 4,
        "groups": groups,
        "eps": config["norm_eps"],
        "act": config["act_fn"],
    }
    if not BLOCK_TYPES[block_type]:
        return {"resnet": resnet, "transformer": None}
    transformer = {
        "heads": config["attention_head_dim"][level],
        "num_layers": config["transformer_layers_per_block"][level],
        "cross_attention_dim": config["cross_attention_dim"][level],
        "groups": groups,
        "use_linear_projection": config["use_linear_projection"],
    }
    return {"resnet": resnet, "transformer": transformer}
