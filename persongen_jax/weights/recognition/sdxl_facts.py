"""What ``inspect`` prints about a base model: the recognised facts, as lines."""

from pathlib import Path

from persongen_jax.diffusion.scheduler_config import check_parametrisation
from persongen_jax.weights.errors import BadConfig, WeightsError, shorten
from persongen_jax.weights.files.directory import read_json
from persongen_jax.weights.files.quantised import dequantised
from persongen_jax.weights.files.source import TensorSource
from persongen_jax.weights.recognition.sdxl import (
    CALLED,
    REFINER,
    SD1,
    SD2,
    SDXL,
    Prediction,
    Recognised,
    family_of_config,
    prediction,
    recognise,
)

_UNETS = ("", SDXL, REFINER, SD1, SD2, "a video model")


def refine(kind: str, source: TensorSource) -> tuple[str, dict]:
    """(kind, facts) of a file whose keys say "checkpoint", "unet", "vae" or "unknown"."""
    found = recognise(source)
    parts = found.layout.parts
    if found.family not in _UNETS:
        return "other-base", {"family": found.family, "stored as": found.precision}
    if kind == "unknown" and not parts:
        return kind, {}
    if set(parts) == {"unet"}:
        kind = "unet-sgm" if parts["unet"].dialect == "sgm" else "unet"
    elif set(parts) == {"vae"}:
        kind = "vae-sgm" if parts["vae"].dialect == "sgm" else "vae"
    elif parts:
        kind = "checkpoint"
    return kind, _facts(kind, found, source)


def _facts(kind, found: Recognised, source) -> dict:
    facts, parts = {}, found.layout.parts
    if found.family or kind != "vae":
        facts["family"] = found.family or "no key tells"
    if kind == "checkpoint":
        held = [name for name in CALLED if name in parts]
        facts["parts"] = ", ".join(f"{CALLED[n]} ({parts[n].dialect or '?'})" for n in held)
        if found.family in ("", SDXL):
            facts["missing"] = ", ".join(CALLED[name] for name in found.missing()) or "nothing"
    if "unet" in parts:
        facts["predicts"] = describe_prediction(found.prediction)
        if found.channels not in (None, found.latents or 4):
            facts["input channels"] = f"{found.channels} (SDXL's plain UNet has 4)"
    facts["stored as"] = found.precision
    try:
        dequantised(source)
    except WeightsError as error:
        facts["not read here"] = str(error).removeprefix(f"{source.describe()}: ")
    if extra := found.layout.unusual():
        facts["ignored"] = shorten(extra, 8)
    if kind == "checkpoint" and found.layout.others:
        facts["of no part"] = shorten(found.layout.others, 8)
    return facts


def describe_prediction(said: Prediction, config: dict | None = None) -> str:
    """What a UNet predicts, and the source of that information.

    Args:
        said: by its file. config: contents of scheduler_config.json, if there is one.
    """
    if said.refusal:
        return f"not clear: {said.refusal}"
    marked = ", ".join(said.said_by)
    told = None if config is None else config.get("prediction_type") or "epsilon"
    kind = said.kind or told
    if kind is None:
        unsaid = "not said in the file: the scheduler's config decides"
        return f"{unsaid}; zero terminal SNR ({marked})" if said.zero_snr else unsaid
    by = f"{marked}" if said.kind else "the scheduler's config"
    zero = said.zero_snr or bool(config and config.get("rescale_betas_zero_snr"))
    text = f"{kind}{', zero terminal SNR' if zero else ''} ({by})"
    if said.kind and told not in (None, said.kind):
        text += f"; the scheduler's config says {told}"
    return text


def _predicts_by(scheduler: dict, said: Prediction) -> str:
    try:
        check_parametrisation(scheduler)
    except ValueError as error:
        return f"not clear: {str(error).removeprefix('scheduler config: ')}"
    return describe_prediction(said, scheduler)


def folder_facts(path: Path, sources: dict[str, TensorSource]) -> dict:
    """For a pipeline's directory: family, prediction, and the parts that it lacks."""
    unet = _read(path / "unet" / "config.json")
    facts = {}
    if unet:
        facts["family"] = family_of_config(unet)
        scheduler = _read(path / "scheduler" / "scheduler_config.json")
        said = prediction(sources["unet"]) if "unet" in sources else Prediction()
        facts["predicts"] = _predicts_by(scheduler, said)
        facts["scheduler"] = str(scheduler.get("_class_name", "unknown"))
        if unet.get("in_channels", 4) != unet.get("out_channels", 4):
            facts["input channels"] = f"{unet['in_channels']} (SDXL's plain UNet has 4)"
        if facts["family"] == SDXL:
            lacking = [CALLED[name] for name in CALLED if name not in sources]
            facts["missing"] = ", ".join(lacking) or "nothing"
    else:
        other = _read(path / "transformer" / "config.json").get("_class_name")
        facts["family"] = f"of {other}" if other else "no config tells"
    return facts


def _read(path: Path) -> dict:
    return read_json(path, BadConfig) if path.is_file() else {}


__all__ = ["folder_facts", "describe_prediction", "refine"]
