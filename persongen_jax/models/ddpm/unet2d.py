"""UNet2DModel: the denoiser of DDPM on pixels (Ho et al., arXiv 2006.11239, appendix B).

Built from diffusers' ``config.json``, with module paths that mirror diffusers' keys. Arrays are
NHWC.
"""

import warnings

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import ArrayLike, DTypeLike
from ml_collections import FrozenConfigDict

from persongen_jax.models.ddpm.blocks import DownBlock2D, MidBlock2D, UpBlock2D
from persongen_jax.models.embeddings import (
    GaussianFourierProjection,
    TimestepEmbedding,
    sinusoidal_embedding,
)
from persongen_jax.models.layers import Conv, Embed, GroupNorm, LayerOptions
from persongen_jax.models.ops import activation

# diffusers' defaults for keys that a config.json may omit.
DEFAULTS = {
    "sample_size": None,
    "in_channels": 3,
    "out_channels": 3,
    "center_input_sample": False,
    "time_embedding_type": "positional",
    "time_embedding_dim": None,
    "freq_shift": 0,
    "flip_sin_to_cos": True,
    "down_block_types": ["DownBlock2D"] + ["AttnDownBlock2D"] * 3,
    "mid_block_type": "UNetMidBlock2D",
    "up_block_types": ["AttnUpBlock2D"] * 3 + ["UpBlock2D"],
    "block_out_channels": [224, 448, 672, 896],
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "downsample_padding": 1,
    "downsample_type": "conv",
    "upsample_type": "conv",
    "dropout": 0.0,
    "act_fn": "silu",
    "attention_head_dim": 8,
    "norm_num_groups": 32,
    "attn_norm_num_groups": None,
    "norm_eps": 1e-5,
    "resnet_time_scale_shift": "default",
    "add_attention": True,
    "class_embed_type": None,
    "num_class_embeds": None,
    "num_train_timesteps": None,
}

# Keys for which only these values are implemented; diffusers' other values are refused by name.
SUPPORTED = {
    "time_embedding_type": ("positional", "fourier", "learned"),
    "mid_block_type": ("UNetMidBlock2D", None),
    "downsample_padding": (0, 1),
    "downsample_type": ("conv", "resnet"),
    "upsample_type": ("conv", "resnet"),
    "resnet_time_scale_shift": ("default", "scale_shift"),
    "class_embed_type": (None, "timestep", "identity"),
}

# Block types: whether attention follows each resnet, and how the sides change; None: as
# downsample_type or upsample_type says.
DOWN_TYPES = {
    "DownBlock2D": (False, "conv"),
    "ResnetDownsampleBlock2D": (False, "resnet"),
    "AttnDownBlock2D": (True, None),
}
UP_TYPES = {
    "UpBlock2D": (False, "conv"),
    "ResnetUpsampleBlock2D": (False, "resnet"),
    "AttnUpBlock2D": (True, None),
}


def complete_config(config: dict) -> dict:
    """``config`` with diffusers' defaults filled in; ValueError on a value not implemented."""
    kind = config.get("_class_name", "UNet2DModel")
    if kind != "UNet2DModel":
        raise ValueError(f"UNet config: _class_name={kind!r} is not supported; use a UNet2DModel")
    unknown = sorted(key for key in config if key not in DEFAULTS and key[0] != "_")
    if unknown:
        warnings.warn(
            f"UNet config: unknown keys {', '.join(unknown)} have no effect", stacklevel=3
        )
    config = {key: config.get(key, default) for key, default in DEFAULTS.items()}
    for key, values in SUPPORTED.items():
        if config[key] not in values:
            _refuse(key, config[key], values)
    levels = len(config["block_out_channels"])
    for key, types in (("down_block_types", DOWN_TYPES), ("up_block_types", UP_TYPES)):
        if len(config[key]) != levels:
            raise ValueError(
                f"UNet config: {key} has {len(config[key])} entries, block_out_channels {levels}"
            )
        config[key] = [name.removeprefix("UNetRes") for name in config[key]]  # old names
        for name in config[key]:
            if name not in types:
                _refuse(key, name, types)
    if config["norm_num_groups"] is None:
        raise ValueError("UNet config: norm_num_groups=None is not supported; give a number")
    head = config["attention_head_dim"]
    for channels in _attending(config):
        if head is not None and channels % head:
            raise ValueError(
                f"UNet config: attention_head_dim={head} does not divide {channels} channels; "
                "choose a divisor, or None for one head"
            )
    if config["time_embedding_type"] == "learned" and not config["num_train_timesteps"]:
        raise ValueError("UNet config: a learned time embedding needs num_train_timesteps")
    if config["dropout"]:
        warnings.warn(
            f"UNet config: dropout={config['dropout']} is not applied in training", stacklevel=3
        )
    return config


def _attending(config: dict) -> list[int]:
    """The numbers of channels of the layers that have attention."""
    widths = config["block_out_channels"]
    down = zip(widths, config["down_block_types"], strict=True)
    up = zip(widths[::-1], config["up_block_types"], strict=True)
    found = {channels for channels, name in [*down, *up] if "Attn" in name}
    if config["mid_block_type"] is not None and config["add_attention"]:
        found.add(widths[-1])
    return sorted(found)


def _refuse(key, value, supported):
    listed = ", ".join(map(repr, supported))
    raise ValueError(f"UNet config: {key}={value!r} is not supported; supported: {listed}")


class UNet2DModel(nnx.Module):
    """Predicts noise (or v, or x0) from noisy images.

    Args:
        config: contents of diffusers' ``config.json``.
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
        kw: LayerOptions = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        channels, n = config["block_out_channels"], config["layers_per_block"]
        levels, groups, eps = len(channels), config["norm_num_groups"], config["norm_eps"]
        self._build_embeddings(channels[0], kw)
        scale_shift = config["resnet_time_scale_shift"] == "scale_shift"
        resnet = {"temb_channels": self.time_embedding.linear_2.kernel.shape[1], "groups": groups}
        resnet |= {"eps": eps, "act": config["act_fn"], "scale_shift": scale_shift}

        def attention(width):
            head = config["attention_head_dim"] or width
            return {"heads": width // head, "groups": groups, "eps": eps}

        self.conv_in = Conv(config["in_channels"], channels[0], 3, padding=1, **kw)
        self.down_blocks = nnx.List([])
        for i, name in enumerate(config["down_block_types"]):
            attends, resample = DOWN_TYPES[name]
            before, out = channels[max(i - 1, 0)], channels[i]
            down = DownBlock2D(
                [(before, out)] + [(out, out)] * (n - 1),
                resnet=resnet,
                attention=attention if attends else None,
                downsample=(resample or config["downsample_type"]) if i < levels - 1 else None,
                padding=config["downsample_padding"],
                **kw,
            )
            self.down_blocks.append(down)

        self.mid_block = nnx.data(None)
        if config["mid_block_type"] is not None:
            factor = {"output_scale_factor": float(config["mid_block_scale_factor"])}
            of_mid = {**attention(channels[-1]), **factor}
            of_mid["groups"] = config["attn_norm_num_groups"] or (None if scale_shift else groups)
            self.mid_block = MidBlock2D(
                channels[-1],
                resnet={**resnet, **factor},
                attention=of_mid if config["add_attention"] else None,
                **kw,
            )

        self.up_blocks = nnx.List([])
        before = channels[-1]
        for i, name in enumerate(config["up_block_types"]):
            attends, resample = UP_TYPES[name]
            level = levels - 1 - i
            out, skip = channels[level], channels[max(level - 1, 0)]
            hidden, skips = [before] + [out] * n, [out] * n + [skip]
            up = UpBlock2D(
                [(h + s, out) for h, s in zip(hidden, skips, strict=True)],
                resnet=resnet,
                attention=attention if attends else None,
                upsample=(resample or config["upsample_type"]) if level else None,
                **kw,
            )
            self.up_blocks.append(up)
            before = out

        self.conv_norm_out = GroupNorm(groups, channels[0], eps=eps, **kw)
        self.conv_out = Conv(channels[0], config["out_channels"], 3, padding=1, **kw)

    def _build_embeddings(self, width: int, kw):
        """The embeddings of the timestep and of the class."""
        config = self.config
        kind, dim = config["time_embedding_type"], config["time_embedding_dim"] or 4 * width
        self.time_proj: GaussianFourierProjection | Embed | None = nnx.data(None)
        inputs = width
        if kind == "fourier":
            self.time_proj, inputs = GaussianFourierProjection(width, scale=16, **kw), 2 * width
        elif kind == "learned":
            self.time_proj = Embed(config["num_train_timesteps"], width, **kw)
        self.time_embedding = TimestepEmbedding(inputs, dim, **kw)
        self.class_embedding: TimestepEmbedding | Embed | None = nnx.data(None)
        if config["class_embed_type"] == "timestep":
            self.class_embedding = TimestepEmbedding(inputs, dim, **kw)
        elif config["class_embed_type"] is None and config["num_class_embeds"] is not None:
            self.class_embedding = Embed(config["num_class_embeds"], dim, **kw)

    def _frequencies(self, values):
        """[b] timesteps to the input of the time embedding, [b, c] float32."""
        if self.time_proj is not None:
            return self.time_proj(values)
        config = self.config
        return sinusoidal_embedding(
            values,
            config["block_out_channels"][0],
            flip_sin_to_cos=config["flip_sin_to_cos"],
            freq_shift=config["freq_shift"],
        )

    def _embed_class(self, labels):
        kind, number = self.config["class_embed_type"], self.config["num_class_embeds"]
        reads = kind is not None or number is not None
        if reads != (labels is not None):
            raise ValueError(
                "this UNet reads class_labels; give them"
                if reads
                else "this UNet has no class embedding; leave class_labels out"
            )
        if kind == "timestep":
            return self.class_embedding(self._frequencies(labels))
        return labels if kind == "identity" else self.class_embedding(labels)

    def __call__(
        self, sample: jax.Array, timesteps: ArrayLike, class_labels: jax.Array | None = None
    ) -> jax.Array:
        """Noisy images [b, h, w, in_channels] to the prediction [b, h, w, out_channels].

        Args:
            timesteps: [b] or one, 0 to 999.
            class_labels: the input of the config's class embedding: [b] whole numbers, timesteps,
                or with "identity" the embeddings [b, e] themselves; None if it has none.

        Returns:
            float32; computed in ``dtype``.

        Raises:
            ValueError: sides that cannot be halved between all levels; class labels missing, or
                given although nothing reads them.
        """
        config = self.config
        halvings = len(config["block_out_channels"]) - 1
        if any(side % 2**halvings for side in sample.shape[1:3]):
            raise ValueError(
                f"an image of {sample.shape[1]}x{sample.shape[2]} cannot be halved {halvings} "
                f"times; give sides that are multiples of {2**halvings}"
            )
        timesteps = jnp.broadcast_to(jnp.asarray(timesteps), sample.shape[:1])
        temb = self.time_embedding(self._frequencies(timesteps))
        if class_labels is not None or self.class_embedding is not None:
            temb = temb + self._embed_class(class_labels)
        elif config["class_embed_type"] == "identity":
            self._embed_class(None)

        x = self.conv_in(2 * sample - 1 if config["center_input_sample"] else sample)
        skips = [x]
        for block in self.down_blocks:
            x, outputs = block(x, temb)
            skips.extend(outputs)
        if self.mid_block is not None:
            x = self.mid_block(x, temb)
        for block in self.up_blocks:
            x = block(x, skips, temb)
        # The last activation is silu whatever act_fn says, as in diffusers.
        x = self.conv_out(activation("silu")(self.conv_norm_out(x))).astype(jnp.float32)
        if config["time_embedding_type"] == "fourier":
            x = x / timesteps[:, None, None, None]
        return x
