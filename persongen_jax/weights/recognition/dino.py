"""DINO's and DINOv2's image encoders: whose names a file has, and its network's sizes."""

import math
import re

from persongen_jax.models.encoders.dino import complete_config
from persongen_jax.weights.errors import BadConfig, KeyMismatch, WeightsError
from persongen_jax.weights.files.source import RenamedSource, Renaming, TensorSource, third

HEAD_WIDTH = 64  # of all published ones

# Patterns of each layout's names -> facebookresearch's, for transformers' of all versions.
_OUTSIDE = {
    "embeddings.cls_token": "cls_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.patch_embeddings.projection.weight": "patch_embed.proj.weight",
    "embeddings.patch_embeddings.projection.bias": "patch_embed.proj.bias",
    "layernorm.weight": "norm.weight",
    "layernorm.bias": "norm.bias",
}
_LAYER = re.compile(r"(?:encoder\.layer|layers)\.(\d+)\.(.+)")
_INSIDE = {
    "attention.attention.query": "attn.q_proj",
    "attention.attention.key": "attn.k_proj",
    "attention.attention.value": "attn.v_proj",
    "attention.output.dense": "attn.out_proj",
    "attention.q_proj": "attn.q_proj",
    "attention.k_proj": "attn.k_proj",
    "attention.v_proj": "attn.v_proj",
    "attention.o_proj": "attn.out_proj",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "norm1": "norm1",
    "norm2": "norm2",
}
_SCALES = {"layer_scale1.lambda1": "ls1.gamma", "layer_scale2.lambda1": "ls2.gamma"}
# What training needs besides: the mask, heads, and a pooler that DINO's figures do not use.
_UNUSED = re.compile(r"(embeddings\.)?mask_token$|pooler\.|classifier\.|head\.")
_WRAPPERS = ("vit.", "dinov2.", "backbone.")
_NOT_READ = {
    "register_tokens": "has register tokens (DINOv2 with registers)",
    "mlp.w12.": "has a gated MLP (DINOv2's giant)",
    "mlp.weights_in.": "has a gated MLP (DINOv2's giant)",
    "mlp.gate_proj.": "has a gated MLP (DINOv2's giant)",
}


def name_dino_tensors(source: TensorSource) -> RenamedSource:
    """The tensors of a file of facebookresearch's or transformers' under our names.

    Heads, poolers and the mask token are ignored; keys of neither layout are passed on.

    Raises:
        WeightsError: a variant that is not read, or a tensor that is there twice.
    """
    keys = source.keys()
    for sign, what in _NOT_READ.items():
        if any(sign in key for key in keys):
            raise WeightsError(
                f"{source.describe()}: {what}, which is not read here. Take "
                "dino_deitsmall16_pretrain.pth or dinov2_vits14_pretrain.pth."
            )
    renaming = Renaming(source)
    for key in keys:
        name = next((key.removeprefix(w) for w in _WRAPPERS if key.startswith(w)), key)
        if _UNUSED.match(name):
            renaming.ignore(key)
        elif match := re.fullmatch(r"(blocks\.\d+\.attn)\.qkv\.(weight|bias)", name):
            for i, part in enumerate("qkv"):
                renaming.add(f"{match[1]}.{part}_proj.{match[2]}", key, third(i))
        elif match := re.fullmatch(r"(blocks\.\d+\.attn)\.proj\.(weight|bias)", name):
            renaming.add(f"{match[1]}.out_proj.{match[2]}", key)
        else:
            renaming.add(_transformers_name(name), key)
    return renaming.source()


def _transformers_name(name: str) -> str:
    if name in _OUTSIDE:
        return _OUTSIDE[name]
    if match := _LAYER.fullmatch(name):
        block, inner = f"blocks.{match[1]}.", match[2]
        path, _, leaf = inner.rpartition(".")
        if inner in _SCALES:
            return block + _SCALES[inner]
        if path in _INSIDE:
            return f"{block}{_INSIDE[path]}.{leaf}"
    return name


def is_transformers(source: TensorSource) -> bool:
    """Whether the names are transformers', which interpolates positions without an offset."""
    return any(re.match(r"(\w+\.)?embeddings\.", key) for key in source.keys())


def infer_dino_config(
    source: TensorSource, *, position_offset: float, stated: dict | None = None
) -> dict:
    """A network's config by the shapes of :func:`name_dino_tensors`' tensors.

    Args:
        position_offset: 0.1 for facebookresearch's files, 0 for transformers'.
        stated: contents of transformers' config.json, for what shapes do not show: the number of
            heads (else 64 channels each), the norms' epsilon and the activation.

    Raises:
        KeyMismatch: the keys are not such a network's.
        BadConfig: positions that are not those of a square, or a width that 64 does not divide.
    """
    keys = set(source.keys())

    def shape(key, dims):
        found = tuple(source.info(key)[1]) if key in keys else ()
        if len(found) != dims or 0 in found:
            raise KeyMismatch(
                source.describe(),
                missing=[key],
                remedy="It is no image encoder of DINO or DINOv2: take "
                "dino_deitsmall16_pretrain.pth, dinov2_vits14_pretrain.pth, or a folder of "
                "transformers' such as facebook/dino-vits16.",
            )
        return found

    width, channels, patch, _ = shape("patch_embed.proj.weight", 4)
    _, positions, _ = shape("pos_embed", 3)
    inner, _ = shape("blocks.0.mlp.fc1.weight", 2)
    layers = {int(m[1]) for key in keys if (m := re.match(r"blocks\.(\d+)\.", key))}
    side = math.isqrt(positions - 1)
    stated = stated or {}
    heads = stated.get("num_attention_heads", max(1, width // HEAD_WIDTH))
    if side**2 != positions - 1 or not side:
        raise BadConfig(
            f"{source.describe()}: {positions} positions are not a class token and a square. Take "
            "a network for square images."
        )
    if "num_attention_heads" not in stated and width % HEAD_WIDTH:
        raise BadConfig(
            f"{source.describe()}: {width} channels are not a multiple of {HEAD_WIDTH}, the width "
            "of a head. Give the folder with its config.json, which says how many heads it has."
        )
    config = {
        "hidden_size": int(width),
        "num_hidden_layers": len(layers),
        "num_attention_heads": heads,
        "intermediate_size": int(inner),
        "image_size": side * int(patch),
        "patch_size": int(patch),
        "num_channels": int(channels),
        "layer_scale": any(key.endswith(".ls1.gamma") for key in keys),
        "position_offset": position_offset,
        **{key: stated[key] for key in ("layer_norm_eps", "hidden_act") if key in stated},
    }
    try:
        return complete_config(config)
    except ValueError as error:
        raise BadConfig(f"{source.describe()}: {error}.") from None


__all__ = ["HEAD_WIDTH", "infer_dino_config", "is_transformers", "name_dino_tensors"]
