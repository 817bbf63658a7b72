"""Where a file keeps each part of a base model, and which project's names it uses.

A whole checkpoint has its parts under prefixes, a file with a single part often has none. The names
after the prefix are sgm's (``input_blocks.1.0``), open_clip's (``transformer.resblocks.0``), or
diffusers' and transformers' (``down_blocks.0``, ``text_model``). Only keys are examined.
"""

import re
from dataclasses import dataclass, field

from persongen_jax.weights.files.source import RenamedSource, TensorSource

# Longest first if one is a prefix of another.
PREFIXES = (
    ("model.diffusion_model.", "unet"),
    ("diffusion_model.", "unet"),
    ("unet.", "unet"),
    ("first_stage_model.", "vae"),
    ("vae.", "vae"),
    ("conditioner.embedders.0.transformer.", "text_encoder"),
    ("conditioner.embedders.0.model.", "text_encoder_2"),  # the only one of the refiner
    ("conditioner.embedders.1.model.", "text_encoder_2"),
    ("cond_stage_model.transformer.", "text_encoder"),  # SD 1.x
    ("cond_stage_model.model.", "text_encoder"),  # SD 2.x
    ("text_encoders.clip_l.transformer.", "text_encoder"),
    ("text_encoders.clip_g.transformer.", "text_encoder_2"),
    ("text_encoder.", "text_encoder"),
    ("text_encoder_2.", "text_encoder_2"),
)

# First words of the keys of a part without a prefix, which identify it.
_ALONE = {
    "unet": (
        re.compile(r"(input_blocks|down_blocks|double_blocks|joint_blocks)\."),
        re.compile(
            r"(input_blocks|middle_block|output_blocks|time_embed|label_emb|out|conv_in|conv_out|"
            r"conv_norm_out|time_embedding|add_embedding|down_blocks|mid_block|up_blocks)\."
        ),
    ),
    "vae": (
        re.compile(r"(encoder|decoder)\.(conv_in|conv_out)\."),
        re.compile(r"(encoder|decoder|quant_conv|post_quant_conv)\."),
    ),
}

# Part -> (whose names, a key that has them), in search order.
_DIALECTS = {
    "unet": (
        (
            "sgm",
            re.compile(r"(input_blocks|middle_block|output_blocks|time_embed|label_emb|out)\."),
        ),
        ("diffusers", re.compile(r"(down_blocks|mid_block|up_blocks|conv_in)\.")),
    ),
    "vae": (
        ("sgm", re.compile(r"(encoder|decoder)\.(down|mid|up|norm_out)\.")),
        ("diffusers", re.compile(r"(encoder|decoder)\.(down_blocks|mid_block|up_blocks)\.")),
    ),
}
_TEXT_DIALECTS = (
    ("open_clip", re.compile(r"transformer\.resblocks\.|token_embedding\.|ln_final\.")),
    ("transformers", re.compile(r"(text_model\.)?(encoder\.layers|embeddings)\.")),
)

# Left out on purpose: the noise schedule, which the scheduler's config defines; training state,
# such as counters, a moving average, a discriminator; CLIP's temperature; constant position
# numbers; and the first text encoder's projection, which SDXL does not use.
_HARMLESS = re.compile(
    r"(model\.diffusion_model\.__index_timestep_zero__|first_stage_model\.logvar)$"
    r"|(alphas|betas|alphas_cumprod(_prev|_next)?|sqrt_(one_minus_|recip_|recipm1_)?alphas(_cumprod)?|"
    r"log_one_minus_alphas_cumprod|sqrt_recipm1_alphas_cumprod|posterior_\w+|logvar|lvlb_weights|"
    r"sigmas|log_sigmas|scale_factor|global_step|epoch|step|iteration|num_batches_tracked)$"
    r"|(denoiser|model_ema|ema|optimizer_states?|optimizer|lr_schedulers?|loss|callbacks)\."
    r"|(first_stage_model|vae)\.(loss|model_ema)\."
    r"|.*\.position_ids$"
    r"|(conditioner\.embedders\.\d|text_encoders\.clip_[lg]|cond_stage_model)\.(\w+\.)?logit_scale$"
    r"|(conditioner\.embedders\.0|text_encoders\.clip_l)\.(transformer\.)?text_projection(\.weight)?$"
)
# Of these, what every published checkpoint has, so leaving it out needs no warning.
_USUAL = re.compile(r"denoiser\.|model_ema\.|.*\.(position_ids|logit_scale)$")
MARKERS = (
    *("v_pred", "ztsnr", "edm_mean", "edm_std"),
    *("edm_vpred.sigma_max", "edm_vpred.sigma_min"),
)


@dataclass(frozen=True)
class Place:
    """A part within a file. ``dialect``: whose names it has, "" if unknown."""

    part: str
    prefix: str
    dialect: str
    keys: tuple[str, ...]

    def inner(self) -> list[str]:
        """The keys without the prefix."""
        return [key[len(self.prefix) :] for key in self.keys]


@dataclass(frozen=True)
class Layout:
    """The result of :func:`read_layout`.

    Attributes:
        parts: Place by part. harmless, markers, others: keys that belong to none.
    """

    parts: dict[str, Place] = field(default_factory=dict)
    harmless: tuple[str, ...] = ()
    markers: tuple[str, ...] = ()
    others: tuple[str, ...] = ()

    def unusual(self) -> list[str]:
        """Those of ``harmless`` that published checkpoints do not have."""
        return [key for key in self.harmless if not _USUAL.match(key)]


def read_layout(source: TensorSource) -> Layout:
    """Assign every key of ``source`` to its part."""
    keys, found, harmless, markers, others = source.keys(), {}, [], [], []
    alone = _part_alone(keys)
    for key in keys:
        if _marker(key):
            markers.append(key)
        elif _HARMLESS.match(key):
            harmless.append(key)
        else:
            place = next((place for place in PREFIXES if key.startswith(place[0])), None)
            if place is None and alone and _ALONE[alone][1].match(key):
                place = ("", alone)
            if place:
                found.setdefault(place, []).append(key)
            else:
                others.append(key)
    parts = {}
    # If one part has two prefixes, the one with more keys counts.
    for (prefix, part), own in sorted(found.items(), key=lambda item: len(item[1])):
        if part in parts:
            others += parts[part].keys
        parts[part] = Place(part, prefix, _dialect(part, own, len(prefix)), tuple(own))
    return Layout(parts, tuple(harmless), tuple(markers), tuple(others))


def unwrapped(source: TensorSource) -> TensorSource:
    """The state dict inside a trainer's file; ``source`` itself if nothing wraps it.

    This removes "state_dict." and "model." of a whole checkpoint in a pickle, and the prefixes of
    torch's wrappers for several devices ("module.") and compiling ("_orig_mod.").
    """
    keys = source.keys()
    around = _AROUND.match(next((key for key in keys if _AROUND.match(key)), ""))
    inner = [key for key in keys if around is None or key.startswith(around[0])]
    names = {key: _plain(key[len(around[0]) :] if around else key) for key in inner}
    if all(name == key for key, name in names.items()) or len(set(names.values())) < len(names):
        return source
    table = {name: (key, None) for key, name in names.items()}
    return RenamedSource(source, table, ignored=[key for key in keys if key not in names])


# A pickle's outer dictionary, after joining its keys.
_AROUND = re.compile(
    r"(?:state_dict|model_state_dict|model(?=\.(?:model\.diffusion_model|input_blocks|time_embed|"
    r"conv_in|first_stage_model|conditioner|down_blocks|visual)\.))\."
)


def _plain(key: str) -> str:
    return key.removeprefix("module.").replace("_orig_mod.", "").removeprefix("module.")


def marker_name(key: str) -> str:
    """The entry of ``MARKERS`` that matches the key, with or without the UNet's prefix."""
    return key.removeprefix("model.").removeprefix("diffusion_model.")


def _marker(key):
    return marker_name(key) in MARKERS


def _part_alone(keys) -> str | None:
    if any(key.startswith(prefix) for key in keys for prefix, _ in PREFIXES):
        return None
    for part, (sign, _) in _ALONE.items():
        if any(sign.match(key) for key in keys):
            return part
    return None


def _dialect(part, keys, skip) -> str:
    for name, sign in _DIALECTS.get(part, _TEXT_DIALECTS):
        if any(sign.match(key, skip) for key in keys):
            return name
    return ""


__all__ = ["Layout", "MARKERS", "PREFIXES", "Place", "marker_name", "read_layout", "unwrapped"]
