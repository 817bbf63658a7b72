"""EVA-CLIP: whose names a file has, which towers, and their sizes by shapes.

Two projects publish the same weights: baaivision under its own names, and timm, under ``trunk.`` in
OpenCLIP's files, which also hold the text tower under OpenCLIP's names.
"""

import math
import re
from typing import NamedTuple

from persongen_jax.models.encoders.eva_clip import complete_config
from persongen_jax.weights.errors import BadConfig, KeyMismatch, WeightsError
from persongen_jax.weights.files.source import RenamedSource, Renaming, TensorSource, third
from persongen_jax.weights.recognition.open_clip import (
    IGNORED,
    TEXT,
    VISION,
    infer_text_config,
)
from persongen_jax.weights.recognition.open_clip_names import open_clip_entries

FILE = "EVA02_CLIP_L_336_psz14_s6B.pt"
HEAD_WIDTH = 64  # of all published EVA-02 towers
_PLAIN_HEADS = {1408: 88, 1792: 112}  # of EVA-01's g/14 and EVA-02's bigE, by their widths
_POST_NORM = 1792  # bigE's width; no key shows that its blocks normalise what they add
_REMEDY = (
    f"It is no image tower of EVA-02's CLIP: take {FILE} from QuanSun/EVA-CLIP, or "
    "timm/eva02_large_patch14_clip_336.merged2b_s6b_b61k."
)
TRUNK = f"{VISION}trunk."
# timm's names of modules within a block -> baaivision's.
_TIMM = {
    "mlp.fc1_g": "mlp.w1",
    "mlp.fc1_x": "mlp.w2",
    "mlp.norm": "mlp.ffn_ln",
    "mlp.fc2": "mlp.w3",
    "attn.norm": "attn.inner_attn_ln",
}
_BLOCK = re.compile(r"(blocks\.\d+)\.(.+)\.(\w+)")
# The tables of the rotary positions, which are computed; and what only pre-training needs.
_UNUSED = re.compile(r"(.*\.)?rope\.|mask_token$")
_WORDS = re.compile(r"(transformer\.resblocks|token_embedding)\.")
_ROTARY = re.compile(r"(.*\.)?rope\.freqs_cos$")


class EvaTowers(NamedTuple):
    """The towers of one file, which they share: closing them does not close it.

    vision: under EvaClipVisionModel's names. text: under transformers', or None without one.
    """

    vision: RenamedSource
    text: RenamedSource | None


def is_eva_clip(source: TensorSource) -> bool:
    """Whether the names are those of an EVA-CLIP's image tower, of any variant."""
    keys = set(source.keys())
    prefixed = (f"{VISION}blocks.0.attn.", f"{TRUNK}blocks.0.attn.")
    if any(key.startswith(prefixed) for key in keys):
        return True
    return {"blocks.0.attn.q_proj.weight", "blocks.0.attn.proj.weight"} <= keys


def split_eva_towers(source: TensorSource) -> EvaTowers:
    """The towers of an opened file; tensors that neither tower knows go to the one they are of.

    A fused q, k and v, as in EVA-01's files, is split.

    Rotary tables and ``logit_scale`` are ignored, and listed in ``vision.ignored``.

    Raises:
        KeyMismatch: there is no image tower of EVA-CLIP's.
        WeightsError: a tensor that is there twice.
    """
    keys = source.keys()
    if not is_eva_clip(source):
        raise KeyMismatch(source.describe(), missing=["visual.blocks.*"], remedy=_REMEDY)
    prefix = next((p for p in (TRUNK, VISION) if any(key.startswith(p) for key in keys)), "")
    plain = f"{prefix}blocks.0.mlp.fc1.weight" in keys
    has_text = any(_WORDS.match(key.removeprefix(TEXT)) for key in keys if prefix)
    vision, text = Renaming(source), Renaming(source)
    for key in keys:
        name = key.removeprefix(prefix)
        if IGNORED.match(key) or (key.startswith(prefix) and _UNUSED.match(name)):
            vision.ignore(key)
        elif name.endswith(".attn.qkv.weight"):
            for number, part in enumerate("qkv"):
                vision.add(name.replace(".qkv.", f".{part}_proj."), key, third(number))
        elif key.startswith(prefix):
            vision.add(_our_name(name, plain), key)
        elif has_text and not key.startswith(VISION):
            inner = key.removeprefix(TEXT)
            for name, transform in open_clip_entries(inner, source.info(key)[1]) or [(inner, None)]:
                text.add(name, key, transform)
        else:
            vision.add(key, key)  # of neither tower: the loader will report it
    return EvaTowers(
        vision.source(part="image tower", owns_base=False),
        text.source(part="text tower", owns_base=False) if has_text else None,
    )


def _our_name(name: str, plain: bool) -> str:
    match = _BLOCK.fullmatch(name)
    if not match:
        return name
    block, module, leaf = match.groups()
    if module == "attn" and leaf in ("q_bias", "v_bias"):
        return f"{block}.attn.{leaf[0]}_proj.bias"
    return f"{block}.{module if plain else _TIMM.get(module, module)}.{leaf}"


def head_width(source: TensorSource) -> int:
    """The width of a head, which an EVA-02 file's rotary tables show; HEAD_WIDTH without them."""
    tables = [key for key in source.keys() if _ROTARY.match(key)]
    return source.info(tables[0])[1][-1] if tables else HEAD_WIDTH


def infer_eva_config(vision: TensorSource, heads_of: int = HEAD_WIDTH) -> dict:
    """EvaClipVisionModel's config by the shapes of the tower's tensors.

    Args:
        heads_of: the width of a head of EVA-02's (``head_width``); g/14's and bigE's are known.

    Raises:
        KeyMismatch: a tensor that shows a size is missing.
        BadConfig: positions that are not those of a square, or a width that no heads divide.
    """
    keys = set(vision.keys())

    def shape(key, dims):
        found = tuple(map(int, vision.info(key)[1])) if key in keys else ()
        if len(found) != dims or 0 in found:
            raise KeyMismatch(vision.describe(), missing=[key], remedy=_REMEDY)
        return found

    width, channels, patch, _ = shape("patch_embed.proj.weight", 4)
    _, positions, _ = shape("pos_embed", 3)
    plain = "blocks.0.mlp.fc1.weight" in keys
    inner, _ = shape(f"blocks.0.mlp.{'fc1' if plain else 'w1'}.weight", 2)
    projection, _ = shape("head.weight", 2)
    layers = {int(m[1]) for key in keys if (m := re.match(r"blocks\.(\d+)\.", key))}
    side = math.isqrt(positions - 1)
    if side**2 != positions - 1 or not side:
        raise BadConfig(
            f"{vision.describe()}: {positions} positions are not a class token and a square. Take "
            "a tower for square images."
        )
    heads_of = _PLAIN_HEADS.get(width, heads_of) if plain else heads_of
    if width % heads_of:
        raise BadConfig(
            f"{vision.describe()}: {width} channels are not a multiple of {heads_of}, the width "
            f"of a head. Take {FILE}."
        )
    config = {
        "hidden_size": width,
        "num_hidden_layers": len(layers),
        "num_attention_heads": width // heads_of,
        "intermediate_size": inner,
        "projection_dim": projection,
        "image_size": side * patch,
        "patch_size": patch,
        "num_channels": channels,
        "plain": plain,
        "post_norm": plain and width == _POST_NORM,
    }
    return complete_config(config)


def infer_eva_text_config(text: TensorSource) -> dict:
    """The text tower's, as a transformers CLIPModel nests it: exact GELU, heads 64 wide.

    Raises:
        KeyMismatch, BadConfig: as ``infer_eva_config``.
    """
    config, projection = infer_text_config(text, "gelu", {})
    return {"text_config": config, "projection_dim": projection}


def eva_facts(source: TensorSource) -> dict:
    """What tells variants apart, by name, for ``inspect``."""
    try:
        towers = split_eva_towers(source)
        config = infer_eva_config(towers.vision, head_width(source))
        kind = "as EVA-01's" if config["plain"] else "with rotary positions and SwiGLU"
        facts = {
            "image tower": f"{config['hidden_size']} wide, patches of {config['patch_size']}",
            "blocks": f"{config['num_hidden_layers']}, {kind}",
            "image size": config["image_size"],
            "image embedding": config["projection_dim"],
        }
        if towers.text is None:
            return {**facts, "text tower": "none, so that CLIP-T cannot be measured with it"}
        text = infer_eva_text_config(towers.text)["text_config"]
        return {**facts, "text tower": f"{text['hidden_size']} wide, {text['vocab_size']} words"}
    except WeightsError as error:
        return {"not read": str(error).splitlines()[0]}


__all__ = [
    "FILE",
    "EvaTowers",
    "eva_facts",
    "head_width",
    "infer_eva_config",
    "infer_eva_text_config",
    "is_eva_clip",
    "split_eva_towers",
]
