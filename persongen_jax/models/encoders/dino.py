"""DINO's vision transformer (Caron et al., arXiv 2104.14294, section 3.1), and DINOv2's.

DINOv2's (Oquab et al., arXiv 2304.07193, section 4) is the same with layer scale (Touvron et al.,
arXiv 2103.17239, section 2).

Module paths mirror facebookresearch's keys, except that q, k and v are separate layers.
"""

import math
from typing import Any, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from ml_collections import FrozenConfigDict

from persongen_jax.models.encoders.clip import CLIPMLP, CLIPAttention, take_rows
from persongen_jax.models.layers import Conv, LayerNorm, LayerOptions
from persongen_jax.models.ops import activation, materialize

# DINO's ViT-S/16. ``image_size`` is that of the position table; others interpolate it.
DEFAULTS = {
    "hidden_size": 384,
    "num_hidden_layers": 12,
    "num_attention_heads": 6,
    "intermediate_size": 1536,
    "image_size": 224,
    "patch_size": 16,
    "num_channels": 3,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-6,
    "layer_scale": False,
    "position_offset": 0.1,
}
BICUBIC = -0.75  # torch's free parameter of cubic convolution (Keys 1981); jax.image has -0.5


def complete_config(config: dict) -> dict:
    """``config`` with DINO ViT-S/16's values filled in; ValueError if it describes no network."""
    unknown = sorted(set(config) - set(DEFAULTS))
    if unknown:
        raise ValueError(f"DINO config: unknown keys {unknown}; known: {sorted(DEFAULTS)}")
    config = {**DEFAULTS, **config}
    for key, default in DEFAULTS.items():
        if type(default) is int and (not isinstance(config[key], int) or config[key] < 1):
            raise ValueError(f"DINO config: {key}={config[key]!r}: give a whole number above 0")
    if config["hidden_size"] % config["num_attention_heads"]:
        raise ValueError(
            f"DINO config: num_attention_heads={config['num_attention_heads']} does not divide "
            f"hidden_size={config['hidden_size']}: change one of them"
        )
    activation(config["hidden_act"])
    return config


def bicubic_matrix(old: int, new: int, offset: float) -> np.ndarray:
    """[new, old] float32: how torch's bicubic interpolation makes ``new`` values of ``old``.

    Without antialiasing, corners not aligned, the edge repeated. With an ``offset`` the scale is
    (new + offset) / old, as in facebookresearch's code, where it guards against rounding.
    """
    scale = old / (new + offset)
    centres = (np.arange(new) + 0.5) * scale - 0.5
    first = np.floor(centres).astype(int) - 1
    matrix = np.zeros((new, old))
    for tap in range(4):
        at = first + tap
        weights = _cubic(np.abs(centres - at))
        np.add.at(matrix, (np.arange(new), np.clip(at, 0, old - 1)), weights)
    return matrix.astype(np.float32)


def _cubic(x: np.ndarray) -> np.ndarray:
    near = ((BICUBIC + 2) * x - (BICUBIC + 3)) * x * x + 1
    far = ((BICUBIC * x - 5 * BICUBIC) * x + 8 * BICUBIC) * x - 4 * BICUBIC
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


class LayerScale(nnx.Module):
    """Multiplies every channel by a learnt factor."""

    def __init__(self, features: int, *, dtype: DTypeLike, param_dtype: DTypeLike, rngs: nnx.Rngs):
        del rngs  # unused; kept so that all layers have the same arguments
        self.dtype = dtype
        self.gamma = nnx.Param(jnp.ones((features,), param_dtype))

    def __call__(self, x: jax.Array) -> jax.Array:
        return x * self.gamma[...].astype(self.dtype)


class PatchEmbed(nnx.Module):
    """[b, h, w, c] to [b, h / patch, w / patch, d]; the rest of a side is cut off."""

    def __init__(self, config: dict[str, Any], **kw: Unpack[LayerOptions]):
        patch = config["patch_size"]
        self.proj = Conv(config["num_channels"], config["hidden_size"], patch, strides=patch, **kw)

    def __call__(self, images: jax.Array) -> jax.Array:
        return self.proj(images)


class Block(nnx.Module):
    """Attention, then MLP, each after a norm, with a skip and for DINOv2 with layer scale."""

    def __init__(self, config: dict[str, Any], **kw: Unpack[LayerOptions]):
        features, eps = config["hidden_size"], config["layer_norm_eps"]
        self.norm1 = LayerNorm(features, eps=eps, **kw)
        self.attn = CLIPAttention(features, heads=config["num_attention_heads"], **kw)
        self.norm2 = LayerNorm(features, eps=eps, **kw)
        self.mlp = CLIPMLP(features, config["intermediate_size"], act=config["hidden_act"], **kw)
        self.ls1 = nnx.data(LayerScale(features, **kw) if config["layer_scale"] else None)
        self.ls2 = nnx.data(LayerScale(features, **kw) if config["layer_scale"] else None)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = materialize(x + _scaled(self.ls1, self.attn(self.norm1(x))))
        return materialize(x + _scaled(self.ls2, self.mlp(self.norm2(x))))

    def first(self, x: jax.Array) -> jax.Array:
        """The output for the class token alone, [b, d]."""
        rows = jnp.zeros(len(x), jnp.int32)
        attended = self.attn.at(self.norm1(x), rows, is_causal=False)
        x = take_rows(x, rows) + _scaled(self.ls1, attended)
        return x + _scaled(self.ls2, self.mlp(self.norm2(x)))


def _scaled(scale, x):
    return x if scale is None else scale(x)


class DinoViT(nnx.Module):
    """Maps images to the class token's embedding, which DINO's figures compare.

    Args:
        config: the keys of DEFAULTS, with ViT-S/16's values for omitted ones.
        dtype: of the computation; param_dtype: of the stored weights.

    Raises:
        ValueError: an unknown key, or sizes that do not describe a network.
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
        features = config["hidden_size"]
        side = config["image_size"] // config["patch_size"]
        table = 0.02 * jax.random.normal(rngs.params(), (1, 1 + side**2, features))
        self.cls_token = nnx.Param(jnp.zeros((1, 1, features), param_dtype))
        self.pos_embed = nnx.Param(table.astype(param_dtype))
        self.patch_embed = PatchEmbed(config, **kw)
        self.blocks = nnx.List([Block(config, **kw) for _ in range(config["num_hidden_layers"])])
        self.norm = LayerNorm(features, eps=config["layer_norm_eps"], **kw)

    def hidden_states(self, images: jax.Array) -> tuple[jax.Array, ...]:
        """The embeddings and every block's output, each [b, 1 + patches, hidden_size]."""
        states = [self.embeddings(images)]
        for block in self.blocks:
            states.append(block(states[-1]))
        return tuple(states)

    def embeddings(self, images: jax.Array) -> jax.Array:
        """The class token and the patches with their positions, [b, 1 + patches, hidden_size]."""
        patch, channels = self.config["patch_size"], self.config["num_channels"]
        if images.ndim != 4 or images.shape[3] != channels or min(images.shape[1:3]) < patch:
            raise ValueError(
                f"images have shape {images.shape}: give [b, h, w, {channels}] with sides of at "
                f"least a patch of {patch} pixels"
            )
        patches = self.patch_embed(images)
        b, h, w, features = patches.shape
        cls = jnp.broadcast_to(self.cls_token[...].astype(self.dtype), (b, 1, features))
        tokens = jnp.concatenate([cls, patches.reshape(b, h * w, features)], axis=1)
        return tokens + self.positions(h, w, images.shape[1] == images.shape[2])

    def positions(self, rows: int, columns: int, square: bool = True) -> jax.Array:
        """The position table for rows x columns patches, [1, 1 + patches, hidden_size].

        ``square``: whether the image is; the originals interpolate the table for any other image,
        even where the number of patches is the table's.
        """
        table = self.pos_embed[...]
        old = math.isqrt(table.shape[1] - 1)
        if square and rows * columns == old**2:
            return table.astype(self.dtype)
        offset = self.config["position_offset"]
        grid = table[0, 1:].astype(jnp.float32).reshape(old, old, -1)
        up, across = (bicubic_matrix(old, new, offset) for new in (rows, columns))
        grid = jnp.einsum("hi,wj,ijd->hwd", up, across, grid, precision="highest")
        patches = grid.reshape(1, rows * columns, -1)
        return jnp.concatenate([table[:, :1], patches.astype(table.dtype)], 1).astype(self.dtype)

    def __call__(self, images: jax.Array) -> jax.Array:
        """RGB [b, h, w, 3] by ImageNet's mean and std, of any size, to float32 [b, hidden_size].

        Prepare images by data_pipeline.pictures.transforms.imagenet_preprocess.
        """
        x = self.embeddings(images)
        for block in list(self.blocks)[:-1]:
            x = block(x)
        return self.norm(self.blocks[-1].first(x)).astype(jnp.float32)
