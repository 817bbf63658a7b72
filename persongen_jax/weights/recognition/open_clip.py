"""CLIP in OpenAI's and OpenCLIP's layout: both towers' sizes by shapes, and which activation.

Both projects use the same names, and for B/32 and L/14 the same shapes, but OpenAI's networks have
quick GELU and most of OpenCLIP's exact GELU: shapes cannot tell them apart.
"""

import math
import re
from typing import NamedTuple

from persongen_jax.weights.errors import BadConfig, KeyMismatch
from persongen_jax.weights.files.source import Renaming, TensorSource
from persongen_jax.weights.recognition.open_clip_names import (
    open_clip_entries,
    open_clip_vision_entries,
)

ACTIVATION_NOTE = "hidden_act"  # the entry of a file's metadata that names the activation
VISION, TEXT = "visual.", "text."
HEAD_WIDTH = 64
# Image towers with wider heads: ViT-H (80), ViT-g (88), ViT-bigG (104).
HEADS_BY_WIDTH = {1280: 16, 1408: 16, 1664: 16}
OPENAI_TEXT_WIDTHS = (512, 768)  # of B/32, B/16 and L/14
# Tensors that are no weights: the temperature and bias of the loss, and TorchScript's constants.
IGNORED = re.compile(
    r"(text\.)?(logit_scale|logit_bias|input_resolution|context_length|vocab_size)$|.*attn_mask$"
)
_OPENCLIP_NAME = re.compile(r"open_?clip|laion|datacomp|epoch_", re.IGNORECASE)
_QUICK_NAME = re.compile(r"quick_?gelu|metaclip|dfn", re.IGNORECASE)


class Towers(NamedTuple):
    """The two towers of one file, under transformers' names without a prefix."""

    text: TensorSource
    vision: TensorSource


def split_towers(source: TensorSource) -> Towers:
    """The towers of an opened file, which they share: closing them does not close it.

    Names of neither layout are passed on to the tower that they belong to.

    Raises:
        KeyMismatch: it is not such a file.
        WeightsError: a tensor is there twice.
    """
    keys = source.keys()
    for sign in (f"{VISION}transformer.resblocks.", "transformer.resblocks."):
        if not any(key.removeprefix(TEXT).startswith(sign) for key in keys):
            raise KeyMismatch(
                source.describe(),
                missing=[f"{sign}*"],
                remedy="It is not a whole CLIP in OpenAI's or OpenCLIP's layout, with a ViT (its "
                "ResNets are not read): take one such as ViT-L-14-336px.pt, or a transformers "
                "folder such as openai/clip-vit-large-patch14-336.",
            )
    text, vision = Renaming(source), Renaming(source)
    for key in keys:
        shape = source.info(key)[1]
        if IGNORED.match(key):
            continue
        if key.startswith(VISION):
            inner, renaming, entries = key.removeprefix(VISION), vision, open_clip_vision_entries
        else:
            inner, renaming, entries = key.removeprefix(TEXT), text, open_clip_entries
        for name, transform in entries(inner, shape) or [(inner, None)]:
            renaming.add(name, key, transform)
    return Towers(
        text.source(part="text tower", owns_base=False),
        vision.source(part="image tower", owns_base=False),
    )


def weight_keys(source: TensorSource) -> list[str]:
    """The names of the file that are weights."""
    return [key for key in source.keys() if not IGNORED.match(key)]


def activation_by_size(text_width: int) -> str:
    """What the size alone says about the activation, in words."""
    if text_width in OPENAI_TEXT_WIDTHS:
        return "quick GELU if OpenAI's, usually GELU if OpenCLIP's: shapes do not show it"
    return "GELU, as OpenAI has published none of this size"


def infer_clip_config(towers: Towers, hidden_act: str, stated: dict | None = None) -> dict:
    """A CLIPModel's config, as transformers nests it.

    Args:
        hidden_act: "quick_gelu" or "gelu".
        stated: ``model_cfg`` of open_clip_config.json, for what shapes do not show: heads. Without
            it they are 64 wide, but for the image towers of HEADS_BY_WIDTH.

    Raises:
        KeyMismatch: a tensor that shows a size is missing.
        BadConfig: positions that are not those of a square, or heads that do not divide the width.
    """
    stated = stated or {}
    text, projection = infer_text_config(towers.text, hidden_act, stated)
    vision = _tower(towers.vision, {"hidden_act": hidden_act})
    width, channels, patch, _ = _shape(towers.vision, "embeddings.patch_embedding.weight", 4)
    patches = _shape(towers.vision, "embeddings.position_embedding.weight", 2)[0] - 1
    side = math.isqrt(max(patches, 0))
    if side**2 != patches or not side:
        raise BadConfig(
            f"{towers.vision.describe()}: {patches} patches are not a square. Take a CLIP for "
            "square images."
        )
    head_width = (stated.get("vision_cfg") or {}).get("head_width")
    if head_width and width % head_width:
        raise BadConfig(
            f"{towers.vision.describe()}: its image tower is {width} wide, not a multiple of its "
            f"heads' {head_width} in open_clip_config.json. Put its own config next to it."
        )
    heads = width // head_width if head_width else HEADS_BY_WIDTH.get(width, width // HEAD_WIDTH)
    vision |= {
        "hidden_size": width,
        "num_attention_heads": max(1, heads),
        "num_channels": channels,
        "patch_size": patch,
        "image_size": side * patch,
    }
    _check_heads(towers.vision, vision, "image")
    return {"text_config": text, "vision_config": vision, "projection_dim": projection}


def infer_text_config(source: TensorSource, hidden_act: str, stated: dict) -> tuple[dict, int]:
    """(a text tower's config, the width of its projection); the arguments are as for both towers.

    Raises:
        KeyMismatch, BadConfig: as ``infer_clip_config``.
    """
    text = _tower(source, {"hidden_act": hidden_act})
    vocabulary, width = _shape(source, "embeddings.token_embedding.weight", 2)
    positions, _ = _shape(source, "embeddings.position_embedding.weight", 2)
    projection, _ = _shape(source, "text_projection.weight", 2)
    text |= {
        "hidden_size": width,
        "num_attention_heads": (stated.get("text_cfg") or {}).get(
            "heads", max(1, width // HEAD_WIDTH)
        ),
        "vocab_size": vocabulary,
        "max_position_embeddings": positions,
        "eos_token_id": 2,  # pool at the highest id, as both projects do
    }
    _check_heads(source, text, "text")
    return text, projection


def _check_heads(source: TensorSource, tower: dict, name: str) -> None:
    if tower["hidden_size"] % tower["num_attention_heads"]:
        raise BadConfig(
            f"{source.describe()}: its {name} tower is {tower['hidden_size']} wide, which "
            f"{tower['num_attention_heads']} heads do not divide. Put its "
            "open_clip_config.json next to it, which says how many it has."
        )


def choose_activation(
    source: TensorSource, file_name: str, text_width: int, stated: dict | None = None
) -> tuple[str, str]:
    """("quick_gelu" or "gelu", why).

    Args:
        source: the opened file; its metadata decide, if they name the activation.
        file_name: of the file, which tells OpenCLIP's from OpenAI's where nothing else does.
        text_width: of the text tower's states.
        stated: ``model_cfg`` of an open_clip_config.json.
    """
    noted = source.metadata.get(ACTIVATION_NOTE)
    if noted in ("gelu", "quick_gelu"):
        return noted, "as the file's metadata say"
    if stated:
        quick = bool(stated.get("quick_gelu"))
        return "quick_gelu" if quick else "gelu", "as open_clip_config.json says"
    if _QUICK_NAME.search(file_name):
        return "quick_gelu", "by the file's name"
    if text_width not in OPENAI_TEXT_WIDTHS:
        return "gelu", "OpenAI has published no CLIP of this size"
    if _OPENCLIP_NAME.search(file_name):
        return "gelu", "OpenCLIP's by the file's name"
    return "quick_gelu", "as OpenAI's, since nothing shows that it is OpenCLIP's"


def _tower(source: TensorSource, settings: dict) -> dict:
    layers = {int(m[1]) for key in source.keys() if (m := re.match(r"encoder\.layers\.(\d+)", key))}
    inner = _shape(source, "encoder.layers.0.mlp.fc1.weight", 2)[0]
    own = {"num_hidden_layers": len(layers), "intermediate_size": inner, "layer_norm_eps": 1e-5}
    return {**own, **settings}


def _shape(source: TensorSource, key: str, dims: int) -> tuple[int, ...]:
    found = source.info(key)[1] if key in source.keys() else ()
    if len(found) != dims or 0 in found:
        raise KeyMismatch(source.describe(), missing=[key])
    return tuple(map(int, found))


__all__ = [
    "ACTIVATION_NOTE",
    "IGNORED",
    "TEXT",
    "Towers",
    "VISION",
    "activation_by_size",
    "choose_activation",
    "infer_clip_config",
    "infer_text_config",
    "split_towers",
    "weight_keys",
]
