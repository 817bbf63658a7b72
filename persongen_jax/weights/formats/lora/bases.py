"""Finds out which base model an adapter file is for, from its keys, shapes and metadata.

Files for other bases overlap with SDXL's: SD 1.x has SDXL's first text encoder, and its UNet's
middle blocks have the same names. Matching by name alone would apply them, with wrong results.
"""

import re
from collections.abc import Collection, Mapping

from persongen_jax.weights.errors import UnsupportedAdapter
from persongen_jax.weights.files.source import TensorSource

SDXL = "SDXL"
WIDTHS = {768: "SD 1.x", 1024: "SD 2.x", 1280: "the SDXL refiner", 2048: SDXL}  # of text states

# Keys that only one base has -> its name. Applied to keys that match no module of the model.
_KEYS = {
    r"(^|[._])lora_prior_|^prior\.": "Stable Cascade",
    r"joint_blocks[._]": "SD 3",
    r"single_transformer_blocks[._]|(double|single)_blocks[._]\d": "FLUX",
    r"[._]attn[._]add_[qkv]_proj|[._]attn[._]to_add_out": "SD 3 or FLUX",
    r"(^|[._])lora_te3_|t5xxl|^text_encoder_3\.": "SD 3 or FLUX",
    r"^transformer\.|lora_transformer_|diffusion_model[._](transformer_|)(blocks|layers)[._]\d": (
        "a diffusion transformer (SD 3, FLUX, PixArt, Wan or another)"
    ),
}
# Places where SDXL's UNet has no attention, or no block at all.
_OLDER_UNET = re.compile(
    r"down_blocks[._]0[._]attentions|(down|up)_blocks[._]3[._]"
    r"|input_blocks[._](1|2)[._]1[._]|(input|output)_blocks[._](9|10|11)[._]"
)
_READS_TEXT = re.compile(r".*attn2[._](processor[._])?to_[kv]")

# Words in a file's metadata -> the base; the first match counts.
_NOTES = ("modelspec.architecture", "ss_base_model_version", "ss_sd_model_name_version")
_WORDS = {
    r"xl.*refiner": "the SDXL refiner",
    r"sdxl|xl-v1|diffusion-xl": SDXL,
    r"stable-diffusion-v?1|sd_?v1|\bsd[ _.-]?1": "SD 1.x",
    r"stable-diffusion-v?2|sd_?v2|\bsd[ _.-]?2": "SD 2.x",
    r"stable-diffusion-?3|sd3": "SD 3",
    r"flux": "FLUX",
    r"cascade": "Stable Cascade",
    r"hunyuan": "Hunyuan",
    r"\bwan([ _.-]?[0-9]|\b(?![ _-]))": "Wan",
}


def refuse_other_base(
    source: TensorSource,
    found: list,
    modules: Mapping[str, Mapping[str, tuple]],
    unmatched: Collection[str],
    base: str = "",
) -> None:
    """UnsupportedAdapter if the file is for a base other than the model.

    Args:
        source: the file.
        found: (stem, one-encoder prefix or not, component, path, inner width or None) of matches.
        modules: component -> path -> shape.
        unmatched: keys that match nothing. base: the base named in the settings next to the file.
    """
    widths = {inner for stem, *_, inner in found if inner and _READS_TEXT.fullmatch(stem)}
    name = (
        _by_keys(source, unmatched)
        or _by_width(widths, modules)
        or (None if widths else _by_encoder(source, found))
        or (None if widths else _by_notes(source, base))
    )
    if name and name != SDXL:
        raise UnsupportedAdapter(
            f"{source.describe()}: this is a LoRA for {name}, and the model here is SDXL. Use the "
            "version of it that was trained on SDXL; nothing of it was applied."
        )


def _by_keys(source, unmatched) -> str | None:
    for pattern, name in _KEYS.items():
        if any(re.search(pattern, key) for key in unmatched):
            return name
    if any(_OLDER_UNET.search(key) for key in unmatched):
        # The tensor that reads the text states shows which of the older bases it is.
        shapes = (source.info(key)[1] for key in source.keys() if _READS_TEXT.match(key))
        widths = {shape[1] for shape in shapes if len(shape) > 1} & WIDTHS.keys()
        return WIDTHS[min(widths)] if widths else "SD 1.x or 2.x"
    return None


def _by_width(widths, modules) -> str | None:
    own = {
        shape[1] for path, shape in modules.get("unet", {}).items() if _READS_TEXT.fullmatch(path)
    }
    return next((WIDTHS[w] for w in sorted(widths - own) if w in WIDTHS), None)


def _by_encoder(source, found) -> str | None:
    """Detects a text encoder's prefix that only models with a single encoder use.

    Used only if no tensor that reads the text states shows more.
    """
    found = [each for each in found if each[1]]
    if not found or _by_notes(source) == SDXL:
        return None
    layers = {int(m[1]) for stem, *_ in found if (m := re.search(r"layers[._](\d+)", stem))}
    widths = {inner for *_, inner in found if inner}
    return "SD 2.x" if 1024 in widths or max(layers, default=0) >= 12 else "SD 1.x"


def _by_notes(source, base: str = "") -> str | None:
    for text in (*(source.metadata.get(note, "").lower() for note in _NOTES), base.lower()):
        for pattern, name in _WORDS.items():
            if text and re.search(pattern, text):
                return name
    return "SD 2.x" if source.metadata.get("ss_v2", "").lower() == "true" else None


__all__ = ["refuse_other_base"]
