"""CLIP's text and image towers (Radford et al., arXiv 2103.00020), sized by transformers' configs.

SDXL's two prompt encoders, PhotoMaker's and IP-Adapter's image encoders and the CLIP metrics are
all built from these. Module paths mirror transformers' keys without the ``text_model.`` and
``vision_model.`` prefixes.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Unpack

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from ml_collections import FrozenConfigDict

from persongen_jax.models.attention_kernels import attention
from persongen_jax.models.layers import Conv, Embed, LayerNorm, LayerOptions, Linear
from persongen_jax.models.ops import activation, materialize

# transformers' defaults for keys that a config.json may omit.
SHARED_DEFAULTS = {
    "projection_dim": 512,
    "num_hidden_layers": 12,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}
TEXT_DEFAULTS = {
    **SHARED_DEFAULTS,
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_attention_heads": 8,
    "vocab_size": 49408,
    "max_position_embeddings": 77,
    "eos_token_id": 49407,
}
VISION_DEFAULTS = {
    **SHARED_DEFAULTS,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_attention_heads": 12,
    "num_channels": 3,
    "image_size": 224,
    "patch_size": 32,
}
PROJECTING_ARCHITECTURES = (
    "CLIPModel",
    "CLIPTextModelWithProjection",
    "CLIPVisionModelWithProjection",
)


def complete_config(config: dict, tower: str) -> dict:
    """The settings of one tower, with transformers' defaults filled in.

    Args:
        config: a tower's own config.json, or a full CLIPModel's, which nests it.
        tower: "text" or "vision".

    Raises:
        ValueError: sizes that do not fit each other; the message names the key.
    """
    defaults = {"text": TEXT_DEFAULTS, "vision": VISION_DEFAULTS}[tower]
    nested = (f"{tower}_config", f"{tower}_config_dict")
    if any(config.get(key) for key in nested):
        # OpenAI's own files hold the sizes twice; in transformers the second name wins.
        own = {**(config.get(nested[0]) or {}), **(config.get(nested[1]) or {})}
        # A CLIPModel has one projection_dim for both towers; nested ones are ignored.
        own["projection_dim"] = config.get("projection_dim", SHARED_DEFAULTS["projection_dim"])
        config = own
    completed = {key: config.get(key, default) for key, default in defaults.items()}

    for key, value in completed.items():
        if isinstance(defaults[key], int) and not isinstance(value, int):
            raise ValueError(f"CLIP {tower} config: {key}={value!r} is not supported; use one int")
    if completed["hidden_size"] % completed["num_attention_heads"]:
        raise ValueError(
            f"CLIP {tower} config: num_attention_heads={completed['num_attention_heads']} does not "
            f"divide hidden_size={completed['hidden_size']}: change one of them"
        )
    return completed


def _has_projection(config: dict, with_projection: bool | None) -> bool:
    if with_projection is not None:
        return with_projection
    return any(name in PROJECTING_ARCHITECTURES for name in config.get("architectures") or ())


class CLIPTextOutput(NamedTuple):
    """The text tower's outputs, all in the compute dtype.

    hidden_states: the embeddings and the output of each layer, each [b, n, hidden_size].
    last_hidden_state: [b, n, hidden_size], after the final norm.
    pooler_output: [b, hidden_size], its row at the end-of-text token.
    text_embeds: [b, projection_dim], or None without a projection.
    """

    hidden_states: tuple[jax.Array, ...]
    last_hidden_state: jax.Array
    pooler_output: jax.Array
    text_embeds: jax.Array | None


class CLIPVisionOutput(NamedTuple):
    """The image tower's outputs, all in the compute dtype. Row 0 is the class token.

    hidden_states: the normed embeddings and the output of each layer, each [b, 1 + patches, d].
    last_hidden_state: the last hidden state; no norm follows.
    pooler_output: [b, d], the class token after post_layernorm.
    image_embeds: [b, projection_dim], or None without a projection.
    """

    hidden_states: tuple[jax.Array, ...]
    last_hidden_state: jax.Array
    pooler_output: jax.Array
    image_embeds: jax.Array | None


def take_rows(x: jax.Array, rows: jax.Array) -> jax.Array:
    """[b, n, d] at the positions ``rows`` [b]: [b, d]."""
    return x[jnp.arange(len(x)), rows]


class CLIPAttention(nnx.Module):
    """Multi-head self-attention over [b, n, d]; unlike the UNet's, every projection has a bias."""

    def __init__(self, features: int, *, heads: int, **kw: Unpack[LayerOptions]):
        self.heads = heads
        self.q_proj = Linear(features, features, **kw)
        self.k_proj = Linear(features, features, **kw)
        self.v_proj = Linear(features, features, **kw)
        self.out_proj = Linear(features, features, **kw)

    def __call__(self, x: jax.Array, *, is_causal: bool = False) -> jax.Array:
        q, k, v = (self._split(p(x)) for p in (self.q_proj, self.k_proj, self.v_proj))
        return self.out_proj(attention(q, k, v, is_causal=is_causal).reshape(*x.shape[:2], -1))

    def at(self, x: jax.Array, rows: jax.Array, *, is_causal: bool) -> jax.Array:
        """The output at the positions ``rows`` [b] only: [b, d]."""
        q = self._split(self.q_proj(take_rows(x, rows)[:, None]))
        k, v = (self._split(p(x)) for p in (self.k_proj, self.v_proj))
        earlier = (jnp.arange(x.shape[1]) <= rows[:, None])[:, None, None] if is_causal else None
        return self.out_proj(attention(q, k, v, earlier).reshape(len(x), -1))

    def _split(self, x):
        return x.reshape(*x.shape[:2], self.heads, -1)


class CLIPMLP(nnx.Module):
    """Two linear layers with ``hidden_act`` between them."""

    def __init__(
        self, features: int, hidden_features: int, *, act: str, **kw: Unpack[LayerOptions]
    ):
        self.act = act
        self.fc1 = Linear(features, hidden_features, **kw)
        self.fc2 = Linear(hidden_features, features, **kw)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.fc2(activation(self.act)(self.fc1(x)))


class CLIPEncoderLayer(nnx.Module):
    """Attention, then MLP, each after a norm and with a skip."""

    def __init__(self, config: dict[str, Any], **kw: Unpack[LayerOptions]):
        features, eps = config["hidden_size"], config["layer_norm_eps"]
        self.self_attn = CLIPAttention(features, heads=config["num_attention_heads"], **kw)
        self.layer_norm1 = LayerNorm(features, eps=eps, **kw)
        self.mlp = CLIPMLP(features, config["intermediate_size"], act=config["hidden_act"], **kw)
        self.layer_norm2 = LayerNorm(features, eps=eps, **kw)

    def __call__(self, x: jax.Array, *, is_causal: bool = False) -> jax.Array:
        x = materialize(x + self.self_attn(self.layer_norm1(x), is_causal=is_causal))
        return materialize(x + self.mlp(self.layer_norm2(x)))

    def at(self, x: jax.Array, rows: jax.Array, *, is_causal: bool) -> jax.Array:
        """The output at the positions ``rows`` [b] only, without computing the others: [b, d]."""
        x = take_rows(x, rows) + self.self_attn.at(self.layer_norm1(x), rows, is_causal=is_causal)
        return x + self.mlp(self.layer_norm2(x))


class CLIPEncoder(nnx.Module):
    """The stack of layers: [b, n, d] to a tuple of its input and every layer's output."""

    def __init__(self, config: dict[str, Any], **kw: Unpack[LayerOptions]):
        activation(config["hidden_act"])  # fails now if unknown, not at the first call
        self.layers = nnx.List(
            [CLIPEncoderLayer(config, **kw) for _ in range(config["num_hidden_layers"])]
        )

    def __call__(self, x: jax.Array, *, is_causal: bool = False) -> tuple[jax.Array, ...]:
        hidden_states = [x]
        for layer in self.layers:
            hidden_states.append(layer(hidden_states[-1], is_causal=is_causal))
        return tuple(hidden_states)

    def last_at(
        self, hidden_states: Sequence[jax.Array], rows: jax.Array, *, is_causal: bool = False
    ) -> jax.Array:
        """The last hidden state at the positions ``rows`` [b]: [b, d].

        A caller that needs only these never runs the whole last layer (under ``jax.jit``).
        """
        if not self.layers:
            return take_rows(hidden_states[-1], rows)
        return self.layers[-1].at(hidden_states[-2], rows, is_causal=is_causal)


class CLIPTextEmbeddings(nnx.Module):
    """Token plus position embeddings: ids [b, n] to [b, n, d]."""

    def __init__(self, config: dict[str, Any], **kw: Unpack[LayerOptions]):
        features = config["hidden_size"]
        self.token_embedding = Embed(config["vocab_size"], features, **kw)
        self.position_embedding = Embed(config["max_position_embeddings"], features, **kw)

    def __call__(self, input_ids: jax.Array) -> jax.Array:
        positions = jnp.arange(input_ids.shape[1])
        return self.token_embedding(input_ids) + self.position_embedding(positions)


class CLIPVisionEmbeddings(nnx.Module):
    """The class token and the patches of [b, h, w, c], with positions: [b, 1 + patches, d]."""

    def __init__(
        self, config: dict[str, Any], *, dtype: DTypeLike, param_dtype: DTypeLike, rngs: nnx.Rngs
    ):
        kw: LayerOptions = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        features, patch = config["hidden_size"], config["patch_size"]
        patches = (config["image_size"] // patch) ** 2
        self.dtype = dtype
        class_embedding = jax.random.normal(rngs.params(), (features,)) / features**0.5
        self.class_embedding = nnx.Param(class_embedding.astype(param_dtype))
        self.patch_embedding = Conv(
            config["num_channels"], features, patch, strides=patch, use_bias=False, **kw
        )
        self.position_embedding = Embed(1 + patches, features, **kw)

    def __call__(self, pixel_values: jax.Array) -> jax.Array:
        patches = self.patch_embedding(pixel_values)
        b, *_, features = patches.shape
        cls = jnp.broadcast_to(self.class_embedding[...].astype(self.dtype), (b, 1, features))
        tokens = jnp.concatenate([cls, patches.reshape(b, -1, features)], axis=1)
        return tokens + self.position_embedding(jnp.arange(tokens.shape[1]))


class CLIPTextModel(nnx.Module):
    """Maps prompt ids to hidden states and a pooled embedding.

    Under ``jax.jit`` only what the caller returns is computed: a prompt encoder that returns
    ``hidden_states[-2]`` runs neither the last layer nor the pooling; one that returns the pooled
    embedding runs the last layer for one token.

    Args:
        config: contents of transformers' ``config.json``, a text tower's or a full CLIPModel's.
        with_projection: has ``text_projection``; None: as the config's ``architectures`` say.
        dtype: of the computation; param_dtype: of the stored weights.

    Raises:
        ValueError: a config value that is not implemented, or sizes that do not fit.
    """

    def __init__(
        self,
        config: dict,
        *,
        with_projection: bool | None = None,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        with_projection = _has_projection(config, with_projection)
        config = complete_config(config, "text")
        self.config = FrozenConfigDict(config)
        self.dtype = dtype
        kw: LayerOptions = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        features = config["hidden_size"]
        self.embeddings = CLIPTextEmbeddings(config, **kw)
        self.encoder = CLIPEncoder(config, **kw)
        self.final_layer_norm = LayerNorm(features, eps=config["layer_norm_eps"], **kw)
        self.text_projection = nnx.data(None)
        if with_projection:
            self.text_projection = Linear(features, config["projection_dim"], use_bias=False, **kw)

    def __call__(self, input_ids: jax.Array) -> CLIPTextOutput:
        """``input_ids`` [b, n] integers, n at most ``max_position_embeddings``.

        Attention is causal and there is no padding mask, as SDXL was trained.
        """
        longest = self.config["max_position_embeddings"]
        if input_ids.shape[1] > longest:
            raise ValueError(
                f"input_ids has {input_ids.shape[1]} tokens, max_position_embeddings={longest}: "
                "truncate the prompt in the tokenizer"
            )
        hidden_states = self.encoder(self.embeddings(input_ids), is_causal=True)
        last = self.final_layer_norm(hidden_states[-1])
        ends = self._pooled_positions(input_ids)
        pooled = self.final_layer_norm(self.encoder.last_at(hidden_states, ends, is_causal=True))
        embeds = None if self.text_projection is None else self.text_projection(pooled)
        return CLIPTextOutput(hidden_states, last, pooled, embeds)

    def _pooled_positions(self, input_ids):
        """[b]: the position of each prompt's end-of-text token."""
        eos = self.config["eos_token_id"]
        # Old configs say 2, which is not the end token in CLIP's vocabulary; that one is its
        # highest id (higher ids are words added later). With any other value the first match
        # counts, because padding may repeat it.
        own = jnp.where(input_ids < self.config["vocab_size"], input_ids, -1)
        return jnp.argmax(own if eos == 2 else input_ids == eos, axis=-1)


class CLIPVisionModel(nnx.Module):
    """Maps images to hidden states and a pooled embedding (ViT, arXiv 2010.11929).

    Args:
        config: contents of transformers' ``config.json``, an image tower's or a full CLIPModel's.
        with_projection: has ``visual_projection``; None: as the config's ``architectures`` say.
        dtype: of the computation; param_dtype: of the stored weights.

    Raises:
        ValueError: a config value that is not implemented, or sizes that do not fit.
    """

    def __init__(
        self,
        config: dict,
        *,
        with_projection: bool | None = None,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        with_projection = _has_projection(config, with_projection)
        config = complete_config(config, "vision")
        self.config = FrozenConfigDict(config)
        self.dtype = dtype
        kw: LayerOptions = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        features, eps = config["hidden_size"], config["layer_norm_eps"]
        self.embeddings = CLIPVisionEmbeddings(config, **kw)
        self.pre_layrnorm = LayerNorm(features, eps=eps, **kw)  # transformers' spelling
        self.encoder = CLIPEncoder(config, **kw)
        self.post_layernorm = LayerNorm(features, eps=eps, **kw)
        self.visual_projection = nnx.data(None)
        if with_projection:
            self.visual_projection = Linear(
                features, config["projection_dim"], use_bias=False, **kw
            )

    def __call__(self, pixel_values: jax.Array) -> CLIPVisionOutput:
        """``pixel_values`` [b, image_size, image_size, 3], normalised by CLIP's mean and std."""
        size, channels = self.config["image_size"], self.config["num_channels"]
        if pixel_values.shape[1:] != (size, size, channels):
            raise ValueError(
                f"pixel_values has shape {pixel_values.shape}, image_size={size} needs "
                f"[b, {size}, {size}, {channels}]: resize and crop the images to it"
            )
        hidden_states = self.encoder(self.pre_layrnorm(self.embeddings(pixel_values)))
        class_token = jnp.zeros(len(pixel_values), jnp.int32)
        pooled = self.post_layernorm(self.encoder.last_at(hidden_states, class_token))
        embeds = None if self.visual_projection is None else self.visual_projection(pooled)
        return CLIPVisionOutput(hidden_states, hidden_states[-1], pooled, embeds)
