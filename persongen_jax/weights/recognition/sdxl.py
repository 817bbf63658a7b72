"""Recognises a base model's file or directory before any weight is read.

From a file's keys, shapes and metadata, or a directory's configs, it derives the family, the parts
and whose names they have, what the UNet predicts, and how the weights are stored.

    found = recognise(source)
    found.family, found.layout.parts, found.prediction, found.precision
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from persongen_jax.weights.errors import shorten
from persongen_jax.weights.files.quantised import precision
from persongen_jax.weights.files.source import TensorSource
from persongen_jax.weights.recognition.layout import Layout, marker_name, read_layout

SDXL, REFINER, SD1, SD2 = "SDXL", "the SDXL refiner", "SD 1.x", "SD 2.x"

# Keys of models without a UNet, after a checkpoint's prefix or without one: sign and family.
_OTHER_FAMILIES = (
    (re.compile(r"transformer_blocks\.\d+\.(img_mod|txt_mod)\."), "Qwen-Image"),
    (re.compile(r"txt_in\.individual_token_refiner\.|context_embedder\.time_text"), "HunyuanVideo"),
    (re.compile(r"adaln_single\.|y_embedder\.|t_block\.1\."), "PixArt"),
    (re.compile(r"single_transformer_blocks\."), "FLUX"),
    (re.compile(r"joint_blocks\.|transformer_blocks\.\d+\.attn\.add_q_proj\."), "SD 3"),
    (re.compile(r"double_blocks\.|single_blocks\.|single_transformer_blocks\."), "FLUX"),
    (re.compile(r"double_layers\.|cond_seq_linear\."), "AuraFlow"),
    (re.compile(r"clip_txt_mapper\.|effnet_mapper\."), "Stable Cascade"),
    (re.compile(r"cap_embedder\.|noise_refiner\."), "Lumina or Z-Image"),
    (re.compile(r"blocks\.\d+\.(self_attn|cross_attn)\."), "Wan"),
)
_TRANSFORMER_PREFIX = re.compile(r"(model\.diffusion_model\.|diffusion_model\.|transformer\.)?")
_VIDEO = re.compile(r".*\.(time_stack|time_mixer|temporal_transformer|motion_modules|temporal_\w+)")
_CONTEXT = re.compile(r".*\.attn2\.to_k\.weight$")
_PROJ_IN = re.compile(r".*\.proj_in\.weight$")
_FIRST = ("input_blocks.0.0.weight", "conv_in.weight")
_LAST = ("out.2.weight", "conv_out.weight")
_LEVELS = {
    "sgm": re.compile(r"input_blocks\.\d+\.0\.op\."),
    "diffusers": re.compile(r"down_blocks\.(\d+)\."),
}
FAMILY_OF_WIDTH = {768: SD1, 1024: SD2, 1280: REFINER, 2048: SDXL}

# Part -> its name in messages.
CALLED = {
    "unet": "the UNet",
    "vae": "the VAE",
    "text_encoder": "the first text encoder",
    "text_encoder_2": "the second text encoder",
}

# A metadata text (lower case, _ for -) -> prediction_type. Others are not guessed.
_PREDICTIONS = {
    **dict.fromkeys(("v", "v_prediction", "v_pred", "vpred", "velocity"), "v_prediction"),
    **dict.fromkeys(("epsilon", "eps", "e", "noise"), "epsilon"),
    **dict.fromkeys(("sample", "x0", "x_0"), "sample"),
}
_PREDICTION_NOTES = ("modelspec.prediction_type", "modelspec.predict_key", "prediction_type")
_V_NOTES = ("ss_v_parameterization", "v_parameterization", "v_pred")
_ZERO_NOTES = ("ss_zero_terminal_snr", "zero_terminal_snr", "zsnr", "ztsnr")
_TRUE, _FALSE = ("true", "1", "yes"), ("false", "0", "no")


@dataclass(frozen=True)
class Prediction:
    """What markers say.

    kind: a prediction_type, "" if unknown. zero_snr: whether the schedule is rescaled to end
    without signal; False if unknown. said_by: which markers. refusal: why the markers cannot be
    followed, "" if they can. edm: the refusal holds whatever the user says. denied: markers that
    say that the schedule is not rescaled.
    """

    kind: str = ""
    zero_snr: bool = False
    said_by: tuple[str, ...] = ()
    refusal: str = ""
    edm: bool = False
    denied: tuple[str, ...] = ()


@dataclass(frozen=True)
class Recognised:
    """The result of :func:`recognise`.

    family: SDXL, REFINER, SD1, SD2 or another's name; "" if no key shows it. width: of the text
    states that the UNet reads; channels: of its input; latents: of its output, those
    of the latents alone; None if no key shows it.
    """

    family: str
    layout: Layout
    prediction: Prediction
    precision: str
    width: int | None = None
    channels: int | None = None
    latents: int | None = None

    def missing(self) -> list[str]:
        """The parts of SDXL that the file lacks."""
        return [part for part in CALLED if part not in self.layout.parts]


def recognise(source: TensorSource) -> Recognised:
    """Recognise a file by keys, shapes and metadata alone."""
    layout = read_layout(source)
    family, width, channels = _family(source, layout)
    said = prediction(source, layout.markers)
    latents = _latents(source, layout)
    return Recognised(family, layout, said, precision(source), width, channels, latents)


# ---- The family --------------------------------------------------------------------------------


def _family(source, layout):
    """(family, width of the text states, channels that the UNet reads)."""
    keys = source.keys()
    if any(_VIDEO.match(key) for key in keys):
        return "a video model", None, None
    for sign, name in _OTHER_FAMILIES:
        if any(sign.match(key, _TRANSFORMER_PREFIX.match(key).end()) for key in keys):
            return name, None, None
    unet = layout.parts.get("unet")
    if unet is None:
        return _family_by_text(layout), None, None
    inner = dict(zip(unet.inner(), unet.keys, strict=True))
    width = _size(source, inner, _CONTEXT, 1)
    channels = next((_shape(source, inner[k], 4)[1:2] for k in _FIRST if k in inner), ())
    channels = channels[0] if channels else None
    if not any(k.startswith(("label_emb.", "add_embedding.")) for k in inner):
        projection = next((source.info(inner[k])[1] for k in inner if _PROJ_IN.match(k)), ())
        by_projection = {4: SD1, 2: SD2}.get(len(projection), "")
        return FAMILY_OF_WIDTH.get(width, by_projection), width, channels
    if width in (768, 1024):  # unCLIP and the upscaler also read labels
        return f"{FAMILY_OF_WIDTH[width]} with labels", width, channels
    refiner = width == 1280 or _levels(unet, inner) == 4
    return (REFINER if refiner else SDXL), width, channels


def _latents(source, layout) -> int | None:
    """Channels of the UNet's output."""
    unet = layout.parts.get("unet")
    if unet is None:
        return None
    inner = dict(zip(unet.inner(), unet.keys, strict=True))
    shape = next((_shape(source, inner[k], 4) for k in _LAST if k in inner), ())
    return shape[0] if shape else None


def _family_by_text(layout) -> str:
    prefixes = {place.prefix for place in layout.parts.values()}
    if "conditioner.embedders.1.model." in prefixes:
        return SDXL
    if "conditioner.embedders.0.model." in prefixes:
        return REFINER
    return SD1 if "cond_stage_model.transformer." in prefixes else ""


def _levels(unet, inner) -> int:
    sign = _LEVELS.get(unet.dialect)
    if sign is None:
        return 0
    if unet.dialect == "sgm":
        return 1 + len({m[0] for m in map(sign.match, inner) if m})
    return len({m[1] for m in map(sign.match, inner) if m})


def _size(source, inner, sign, axis) -> int | None:
    shapes = (source.info(key)[1] for name, key in inner.items() if sign.match(name))
    return next((int(shape[axis]) for shape in shapes if len(shape) > axis), None)


def _shape(source, key, dims) -> tuple:
    shape = source.info(key)[1]
    return tuple(map(int, shape)) if len(shape) == dims else ()


def family_of_config(config: dict) -> str:
    """The family of a diffusers UNet's config; "" if unknown."""
    width = config.get("cross_attention_dim", 1280)
    width = width[-1] if isinstance(width, (list, tuple)) and width else width
    if config.get("addition_embed_type") is None:
        by_projection = SD2 if config.get("use_linear_projection") is True else SD1
        known = FAMILY_OF_WIDTH.get(width) if isinstance(width, int) else None
        return known if known in (SD1, SD2) else by_projection
    blocks = config.get("down_block_types")
    refiner = width == 1280 or (isinstance(blocks, (list, tuple)) and len(blocks) == 4)
    return REFINER if refiner else SDXL


# ---- What the UNet predicts --------------------------------------------------------------------


def prediction(source: TensorSource, markers: Iterable[str] | None = None) -> Prediction:
    """What marker tensors and the file's metadata say."""
    if markers is None:
        markers = read_layout(source).markers
    names = {marker_name(key) for key in markers}
    if edm := sorted(name for name in names if name.startswith("edm")):
        why = f"the tensors {shorten(edm)} mark a model in EDM's parametrisation"
        return Prediction(said_by=tuple(edm), refusal=why, edm=True)
    said = {f"the tensor {name}": "v_prediction" for name in sorted(names & {"v_pred"})}
    zero = [f"the tensor {name}" for name in sorted(names & {"ztsnr"})]
    notes, refusal = source.metadata, ""
    for note in _PREDICTION_NOTES:
        text = str(notes.get(note, "")).strip()
        if text:
            kind = _PREDICTIONS.get(text.lower().replace("-", "_").replace(" ", "_"), "")
            said[f"its note {note}={text}"] = kind
            if not kind:
                refusal = f"its note {note} says {text!r}, which is none of epsilon, v and sample"
    for note in _V_NOTES:
        text = str(notes.get(note, "")).strip().lower()
        if text in _TRUE + _FALSE:
            kind = "v_prediction" if text in _TRUE else "epsilon"
            said[f"its note {note}={notes[note]}"] = kind
    zero += [f"its note {n}" for n in _ZERO_NOTES if str(notes.get(n, "")).lower() in _TRUE]
    denied = [f"its note {n}" for n in _ZERO_NOTES if str(notes.get(n, "")).lower() in _FALSE]
    if zero and denied and not refusal:
        refusal = f"it contradicts itself about its schedule's end: {', '.join(zero + denied)}"
    if len(set(said.values())) > 1 and not refusal:
        listed = "; ".join(f"{marker} says {kind}" for marker, kind in said.items())
        refusal = f"it contradicts itself about what it predicts: {listed}"
    kind = "" if refusal else next(iter(said.values()), "")
    return Prediction(kind, bool(zero), (*said, *zero), refusal, denied=tuple(denied))


__all__ = [
    *("CALLED", "Prediction", "REFINER", "Recognised", "SD1", "SD2", "SDXL"),
    *("family_of_config", "prediction", "recognise"),
]
