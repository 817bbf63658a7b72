"""EVA-02's CLIP: whose names a file has, which towers, and their sizes by shapes.

Two projects publish the same weights: baaivision under its own names, and timm, under ``trunk.`` in
OpenCLIP's files, which also hold the text tower under OpenCLIP's names.
"""

import math
import re
from typing import NamedTuple

from persongen_jax.models.encoders.eva_clip import complete_config
from persongen_jax.weights.errors import BadConfig, KeyMismatch, WeightsError
from persongen_jax.weights.files.source import RenamedSource, Renaming, TensorSource
from persongen_jax.weights.recognition.open_clip import (
    IGNORED,
    TEXT,
    VISION,
    infer_text_config,
)
from persongen_jax.weights.recognition.open_clip_names import open_clip_entries

FILE = "EVA02_CLIP_L_336_psz14_s6B.pt"
HEAD_WIDTH = 64  # of all published EVA-02 towers that are read here
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
_NOT_READ = {
    "attn.qkv.weight": "has fused q, k and v, as EVA-01's CLIP and EVA-02's bigE",
    "mlp.fc1.weight": "has a plain MLP, as EVA-01's CLIP and EVA-02's bigE",
}


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

    Rotary tables and ``logit_scale`` are ignored, and listed in ``vision.ignored``.

    Raises:
        KeyMismatch: there is no image tower of EVA-02's.
        WeightsError: a variant that is not read, or a tensor that is there twice.
    """
    keys = source.keys()
    if not is_eva_clip(source):
        raise KeyMismatch(source.describe(), missing=["visual.blocks.*"], remedy=_REMEDY)
    prefix = next((p for p in (TRUNK, VISION) if any(key.startswith(p) for key in keys)), "")
    for sign, what in _NOT_READ.items():
        if f"{prefix}blocks.0.{sign}" in keys:
            raise WeightsError(
                f"{source.describe()}: {what}, which is not read here. Take {FILE} from "
                "QuanSun/EVA-CLIP."
            )
    has_text = any(_WORDS.match(key.removeprefix(TEXT)) for key in keys if prefix)
    vision, text = Renaming(source), Renaming(source)
    for key in keys:
        name = key.removeprefix(prefix)
        if IGNORED.match(key) or (key.startswith(prefix) and _UNUSED.match(name)):
            vision.ignore(key)
        elif key.startswith(prefix):
            vision.add(_our_name(name), key)
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


def _our_name(name: str) -> str:
    match = _BLOCK.fullmatch(name)
    if not match:
        return name
    block, module, leaf = match.groups()
    if module == "attn" and leaf in ("q_bias", "v_bias"):
        return f"{block}.attn.{leaf[0]}_proj.bias"
    return f"{block}.{_TIMM.get(module, module)}.{leaf}"


def infer_eva_config(vision: TensorSource) -> dict:
    """EvaClipVisionModel's config by the shapes of the tower's tensors; heads are 64 wide.

    Raises:
        KeyMismatch: a tensor that shows a size is missing.
        BadConfig: positions that are not those of a square, or a width that 64 does not divide.
    """
    keys = set(vision.keys())

    def shape(key, dims):
        found = tuple(map(int, vision.info(key)[1])) if key in keys else ()
        if len(found) != dims or 0 in found:
            raise KeyMismatch(vision.describe(), missing=[key], remedy=_REMEDY)
        return found

    width, channels, patch, _ = shape("patch_embed.proj.weight", 4)
    _, positions, _ = shape("pos_embed", 3)
    inner, _ = shape("blocks.0.mlp.w1.weight", 2)
    projection, _ = shape("head.weight", 2)
    layers = {int(m[1]) for key in keys if (m := re.match(r"blocks\.(\d+)\.", key))}
    side = math.isqrt(positions - 1)
    if side**2 != positions - 1 or not side:
        raise BadConfig(
            f"{vision.describe()}: {positions} positions are not a class token and a square. Take "
            "a tower for square images."
        )
    if width % HEAD_WIDTH:
        raise BadConfig(
            f"{vision.describe()}: {width} channels are not a multiple of {HEAD_WIDTH}, the width "
            f"of a head. Take {FILE}."
        )
    config = {
        "hidden_size": width,
        "num_hidden_layers": len(layers),
        "num_attention_heads": width // HEAD_WIDTH,
        "intermediate_size": inner,
        "projection_dim": projection,
        "image_size": side * patch,
        "patch_size": patch,
        "num_channels": channels,
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
        config = infer_eva_config(towers.vision)
        facts = {
            "image tower": f"{config['hidden_size']} wide, patches of {config['patch_size']}",
            "blocks": f"{config['num_hidden_layers']}, with rotary positions and SwiGLU",
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
    "infer_eva_config",
    "infer_eva_text_config",
    "is_eva_clip",
    "split_eva_towers",
]
