"""EVA-CLIP's image towers (Sun et al., arXiv 2303.15389; EVA-02: Fang et al., arXiv 2303.11331).

What EVA-02's has and OpenAI's ViT does not (EVA-02, section 2.1): rotary positions besides the
table, a SwiGLU MLP, and sub-LN, a norm in front of the last projection of attention and of MLP.
EVA-01's g/14 has none of these; bigE's blocks are as g/14's, but normalise what they add. PuLID
(Guo et al., arXiv 2404.16022) reads five of the hidden states of EVA-02's next to the embedding.

Module paths mirror the published file's keys after ``visual.``, except that the biases of q and v
are those of their layers, and that q, k and v are never fused.
"""

from typing import Any, NamedTuple, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from ml_collections import FrozenConfigDict

from persongen_jax.models.attention_kernels import attention
from persongen_jax.models.encoders.clip import take_rows
from persongen_jax.models.layers import Conv, LayerNorm, LayerOptions, Linear
from persongen_jax.models.ops import activation, materialize

# EVA02-CLIP-L-14-336. ``rope_grid``: patches of a side in EVA-02's pre-training, to whose span the
# rotary positions of any other grid are scaled. ``plain``: EVA-01's blocks, without rotary
# positions, SwiGLU and sub-LN. ``post_norm``: bigE's, which normalise what they add.
DEFAULTS = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 2730,
    "projection_dim": 768,
    "image_size": 336,
    "patch_size": 14,
    "num_channels": 3,
    "layer_norm_eps": 1e-6,
    "rope_grid": 16,
    "plain": False,
    "post_norm": False,
}
ROPE_BASE = 10000.0
# The blocks, from 0, whose inputs PuLID reads; they are those entries of ``hidden_states``.
ID_BLOCKS = (4, 8, 12, 16, 20)


def complete_config(config: dict) -> dict:
    """``config`` with EVA02-CLIP-L-14-336's values filled in.

    Raises:
        ValueError: an unknown key, or sizes that describe no network.
    """
    unknown = sorted(set(config) - set(DEFAULTS))
    if unknown:
        raise ValueError(f"EVA-CLIP config: unknown keys {unknown}; known: {sorted(DEFAULTS)}")
    config = {**DEFAULTS, **config}
    for key, default in DEFAULTS.items():
        if type(default) is int and (not isinstance(config[key], int) or config[key] < 1):
            raise ValueError(f"EVA-CLIP config: {key}={config[key]!r}: give a whole number above 0")
    # A head has a half for rows and one for columns, each of pairs.
    if config["hidden_size"] % (4 * config["num_attention_heads"]):
        raise ValueError(
            f"EVA-CLIP config: hidden_size={config['hidden_size']} is not a multiple of 4 times "
            f"num_attention_heads={config['num_attention_heads']}: change one of them"
        )
    if config["image_size"] < config["patch_size"]:
        raise ValueError(
            f"EVA-CLIP config: image_size={config['image_size']} is less than a patch of "
            f"{config['patch_size']}: change one of them"
        )
    return config


class EvaClipOutput(NamedTuple):
    """The tower's outputs, all in the compute dtype. Row 0 is the class token.

    hidden_states: the input of each block and the output of the last, each [b, 1 + patches, d],
        without a norm.
    image_embeds: [b, projection_dim], not of length 1.
    """

    hidden_states: tuple[jax.Array, ...]
    image_embeds: jax.Array

    @property
    def id_hidden_states(self) -> tuple[jax.Array, ...]:
        """What PuLID reads: the inputs of the blocks ID_BLOCKS, five of [b, 1 + patches, d].

        Raises:
            ValueError: a tower of too few blocks.
        """
        blocks = len(self.hidden_states) - 1
        if blocks <= ID_BLOCKS[-1]:
            raise ValueError(
                f"the EVA-CLIP tower has {blocks} blocks, and PuLID reads the inputs of blocks "
                f"{', '.join(map(str, ID_BLOCKS))}: take EVA02-CLIP-L-14-336"
            )
        return tuple(self.hidden_states[block] for block in ID_BLOCKS)


def rotary_tables(side: int, grid: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines by which patches are rotated, float32 [side * side, width] each.

    RoPE (Su et al., arXiv 2104.09864) along both axes: half of the width turns with the row, half
    with the column. Every angle is there twice, for the two numbers of a pair.

    Args:
        side: patches along a side; rows come first in their order.
        grid: patches of a side to whose positions 0 ... grid those of ``side`` are scaled.
        width: of a head, a multiple of 4.
    """
    half = width // 2
    frequencies = ROPE_BASE ** (-np.arange(0, half, 2) / half)
    positions = np.arange(side) / side * grid
    angles = np.repeat(positions[:, None] * frequencies, 2, axis=1)
    rows, columns = np.repeat(angles, side, axis=0), np.tile(angles, (side, 1))
    angles = np.concatenate([rows, columns], axis=1)
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def rotate(x: jax.Array, cosines: np.ndarray, sines: np.ndarray) -> jax.Array:
    """Turn the pairs (2 m, 2 m + 1) of [b, n, heads, d] by the angles of the tables [n, d]."""
    pairs = x.astype(jnp.float32).reshape(*x.shape[:-1], -1, 2)
    turned = jnp.stack([-pairs[..., 1], pairs[..., 0]], axis=-1).reshape(x.shape)
    return (x * cosines[:, None] + turned * sines[:, None]).astype(x.dtype)


class Attention(nnx.Module):
    """Self-attention over [b, 1 + patches, d]; EVA-02's with rotary positions and sub-LN."""

    def __init__(self, config: dict[str, Any], **kw: Unpack[LayerOptions]):
        features = config["hidden_size"]
        self.heads = config["num_attention_heads"]
        self.side, self.grid = config["image_size"] // config["patch_size"], config["rope_grid"]
        self.q_proj = Linear(features, features, **kw)
        self.k_proj = Linear(features, features, use_bias=False, **kw)
        self.v_proj = Linear(features, features, **kw)
        self.rotates = not config["plain"]
        if self.rotates:
            self.inner_attn_ln = LayerNorm(features, eps=config["layer_norm_eps"], **kw)
        self.proj = Linear(features, features, **kw)

    def __call__(self, x: jax.Array) -> jax.Array:
        q, k, v = (self._split(p(x)) for p in (self.q_proj, self.k_proj, self.v_proj))
        return self._merge(attention(self._placed(q), self._placed(k), v))

    def first(self, x: jax.Array) -> jax.Array:
        """The output for the class token alone, [b, d]."""
        q = self._split(self.q_proj(x[:, :1]))  # the class token is not rotated
        k, v = (self._split(p(x)) for p in (self.k_proj, self.v_proj))
        return self._merge(attention(q, self._placed(k), v))[:, 0]

    def _split(self, x):
        return x.reshape(*x.shape[:2], self.heads, -1)

    def _merge(self, heads):
        joined = heads.reshape(*heads.shape[:2], -1)
        return self.proj(self.inner_attn_ln(joined) if self.rotates else joined)

    def _placed(self, x):
        if not self.rotates:
            return x
        tables = rotary_tables(self.side, self.grid, x.shape[-1])
        return jnp.concatenate([x[:, :1], rotate(x[:, 1:], *tables)], axis=1)


class SwiGLU(nnx.Module):
    """w3(LN(silu(w1 x) * w2 x)) over the last axis (Shazeer, arXiv 2002.05202, section 2)."""

    def __init__(self, config: dict[str, Any], **kw: Unpack[LayerOptions]):
        features, inner = config["hidden_size"], config["intermediate_size"]
        self.w1 = Linear(features, inner, **kw)
        self.w2 = Linear(features, inner, **kw)
        self.ffn_ln = LayerNorm(inner, eps=config["layer_norm_eps"], **kw)
        self.w3 = Linear(inner, features, **kw)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.w3(self.ffn_ln(jax.nn.silu(self.w1(x)) * self.w2(x)))


class MLP(nnx.Module):
    """EVA-01's: two layers with exact gelu between them, over the last axis."""

    def __init__(self, config: dict[str, Any], **kw: Unpack[LayerOptions]):
        features, inner = config["hidden_size"], config["intermediate_size"]
        self.fc1 = Linear(features, inner, **kw)
        self.fc2 = Linear(inner, features, **kw)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.fc2(activation("gelu")(self.fc1(x)))


class Block(nnx.Module):
    """Attention, then MLP, each with a norm before it (bigE's: after it) and a skip."""

    def __init__(self, config: dict[str, Any], **kw: Unpack[LayerOptions]):
        features, eps = config["hidden_size"], config["layer_norm_eps"]
        self.norm1 = LayerNorm(features, eps=eps, **kw)
        self.attn = Attention(config, **kw)
        self.norm2 = LayerNorm(features, eps=eps, **kw)
        self.mlp = MLP(config, **kw) if config["plain"] else SwiGLU(config, **kw)
        self.post_norm = config["post_norm"]

    def __call__(self, x: jax.Array) -> jax.Array:
        """[b, 1 + patches, d] to the same."""
        x = materialize(x + self._added(self.attn, self.norm1, x))
        return materialize(x + self._added(self.mlp, self.norm2, x))

    def first(self, x: jax.Array) -> jax.Array:
        """The output for the class token alone, without computing the others, [b, d]."""
        first = jnp.zeros(len(x), jnp.int32)
        x = take_rows(x, first) + self._added(self.attn.first, self.norm1, x)
        return x + self._added(self.mlp, self.norm2, x)

    def _added(self, layer, norm, x):
        return norm(layer(x)) if self.post_norm else layer(norm(x))


class PatchEmbed(nnx.Module):
    """[b, h, w, c] to [b, h / patch, w / patch, d]."""

    def __init__(self, config: dict[str, Any], **kw: Unpack[LayerOptions]):
        patch = config["patch_size"]
        self.proj = Conv(config["num_channels"], config["hidden_size"], patch, strides=patch, **kw)

    def __call__(self, images: jax.Array) -> jax.Array:
        return self.proj(images)


class EvaClipVisionModel(nnx.Module):
    """Maps images to hidden states and CLIP's image embedding.

    Under ``jax.jit`` only what the caller returns is computed: for ``image_embeds`` alone the last
    block runs for the class token.

    Args:
        config: the keys of DEFAULTS, with EVA02-CLIP-L-14-336's values for omitted ones.
        dtype: of the computation; param_dtype: of the stored weights.

    Raises:
        ValueError: an unknown key, or sizes that describe no network.
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
        self.head = Linear(features, config["projection_dim"], **kw)

    def embeddings(self, pixel_values: jax.Array) -> jax.Array:
        """The class token and the patches with their positions, [b, 1 + patches, d]."""
        size, channels = self.config["image_size"], self.config["num_channels"]
        if pixel_values.shape[1:] != (size, size, channels):
            raise ValueError(
                f"pixel_values has shape {pixel_values.shape}, image_size={size} needs "
                f"[b, {size}, {size}, {channels}]: resize and crop the images to it"
            )
        patches = self.patch_embed(pixel_values)
        b, *_, features = patches.shape
        cls = jnp.broadcast_to(self.cls_token[...].astype(self.dtype), (b, 1, features))
        tokens = jnp.concatenate([cls, patches.reshape(b, -1, features)], axis=1)
        return tokens + self.pos_embed[...].astype(self.dtype)

    def __call__(self, pixel_values: jax.Array) -> EvaClipOutput:
        """``pixel_values`` [b, image_size, image_size, 3], normalised by CLIP's mean and std.

        Raises:
            ValueError: images of another shape.
        """
        hidden_states = [self.embeddings(pixel_values)]
        for block in self.blocks:
            hidden_states.append(block(hidden_states[-1]))
        class_token = self.blocks[-1].first(hidden_states[-2])
        return EvaClipOutput(tuple(hidden_states), self.head(self.norm(class_token)))
