"""Checks whether a recognised base can be used here; if not, one sentence says why."""

import os
from typing import Any

from persongen_jax.weights.errors import BadConfig, WeightsError
from persongen_jax.weights.files.source import TensorSource
from persongen_jax.weights.recognition.layout import Place
from persongen_jax.weights.recognition.sdxl import SDXL, Prediction, Recognised, family_of_config

_WIDTHS = "SD 1.x reads text states 768 wide, SD 2.x 1024, the refiner 1280, SDXL 2048"
_CHANNELS = {
    8: "a UNet that edits by instruction, which reads a second image's latents",
    9: "an inpainting UNet, which reads a mask and the masked image's latents",
}

# Part -> how to give it, in Python and in the two commands.
GIVEN = {
    "unet": "unet=FILE|DIR (generate: --unet, training: --config.unet)",
    "vae": "vae=FILE|DIR (generate: --vae, training: --config.vae)",
    "text_encoder": "text_encoders=FILE|DIR (generate: --text-encoders, training: "
    "--config.text_encoders)",
}
GIVEN["text_encoder_2"] = GIVEN["text_encoder"]


def check_file(found: Recognised, where: str | os.PathLike) -> None:
    """WeightsError unless a file is of SDXL, or does not show its family."""
    if found.family not in ("", SDXL):
        width = f" (its UNet reads text states {found.width} wide)" if found.width else ""
        raise WeightsError(
            f"{where}: this is {found.family}{width}, and SDXL is needed here. Give an SDXL file."
        )
    _check_channels(found.channels, where, found.latents or 4)
    if found.prediction.edm:
        raise WeightsError(
            f"{where}: {found.prediction.refusal}, which is not supported with any sampler. Get a "
            "model that predicts epsilon or v."
        )


def check_unet_config(config: dict, where: str | os.PathLike) -> None:
    """WeightsError unless a diffusers config is for SDXL's UNet."""
    kind = config.get("_class_name", "UNet2DConditionModel")
    if kind != "UNet2DConditionModel":
        raise BadConfig(f"{where}: this is a {kind}, and SDXL's UNet2DConditionModel is needed.")
    family = family_of_config(config)
    if family != SDXL:
        raise BadConfig(
            f"{where}: this is {family} (cross_attention_dim {config.get('cross_attention_dim')}; "
            f"{_WIDTHS}), and SDXL is needed here. Give an SDXL model."
        )
    _check_channels(config.get("in_channels", 4), where, config.get("out_channels", 4))


def _check_channels(channels, where, latents=4):
    """``latents``: channels of the UNet's output, which are those of the latents alone."""
    if channels is None or channels == latents:
        return
    if not isinstance(channels, int):
        raise BadConfig(f"{where}: in_channels is {channels!r}. Write it as a number.")
    what = _CHANNELS.get(channels, "a UNet that reads something else than it predicts")
    raise BadConfig(
        f"{where}: in_channels is {channels}: this is {what}. That is not supported; a UNet that "
        f"reads the {latents} channels of its latents alone is needed. Give the model's plain "
        "version."
    )


def check_configs(configs: dict[str, dict], where: str | os.PathLike) -> None:
    """BadConfig if the four components' configs do not fit together."""
    unet, vae = configs["unet"], configs["vae"]
    if unet.get("in_channels", 4) != vae.get("latent_channels", 4):
        raise BadConfig(
            f"{where}: the VAE has latents of {vae.get('latent_channels', 4)} channels and the "
            f"UNet reads {unet.get('in_channels', 4)}. Give the VAE that the model was made with."
        )
    widths: list[Any] = [
        configs[name].get("hidden_size") for name in ("text_encoder", "text_encoder_2")
    ]
    read = unet.get("cross_attention_dim", 1280)
    read = read[-1] if isinstance(read, (list, tuple)) and read else read
    if all(isinstance(n, int) for n in (*widths, read)) and sum(widths) != read:
        raise BadConfig(
            f"{where}: the text encoders are {widths[0]} + {widths[1]} wide and the UNet reads "
            f"{read}. Give the text encoders that the model was made with."
        )


def check_vae(config: dict, base: dict, where: str | os.PathLike) -> None:
    """WeightsError if another VAE's latents have a different scale than the base's."""
    scale, wanted = (c.get("scaling_factor", 0.18215) for c in (config, base))
    if scale != wanted:
        raise BadConfig(
            f"{where}: its scaling_factor is {scale} and the base's {wanted}: this VAE belongs to "
            "another family of models (SD 1.x has 0.18215, SDXL 0.13025). Give one for this base."
        )


def check_latents(
    source: TensorSource, place: Place, config: dict, where: str | os.PathLike
) -> None:
    """WeightsError for a VAE file whose latents have another number of channels."""
    inner = dict(zip(place.inner(), place.keys, strict=True))
    if "decoder.conv_in.weight" not in inner:
        return
    shape = source.info(inner["decoder.conv_in.weight"])[1]
    wanted = config.get("latent_channels", 4)
    if len(shape) == 4 and shape[1] != wanted:
        raise WeightsError(
            f"{where}: this VAE's latents have {shape[1]} channels (FLUX and SD 3: 16), and "
            f"{wanted} are needed. Give SDXL's."
        )


def decide_prediction(
    scheduler: dict, said: Prediction, asked: str | None, where: str | os.PathLike
) -> tuple[dict, list[str]]:
    """(the scheduler's config adapted to markers and the user, notes about it).

    Args:
        scheduler: contents of the base's scheduler_config.json.
        said: by the UNet's file. asked: by the user, a prediction_type, or None.
        where: the UNet's file, for messages.

    Raises:
        WeightsError: contradictory or unsupported markers, and the user does not decide.
    """
    give = "prediction_type (generate: --prediction-type; training: --config.prediction_type)"
    if said.refusal and not asked:
        raise WeightsError(f"{where}: {said.refusal}. Give {give}.")
    config, notes = dict(scheduler), []
    chosen: dict[str, Any] = {}
    told = scheduler.get("prediction_type") or "epsilon"
    marked = ", ".join(said.said_by)
    if asked:
        chosen["prediction_type"] = asked
        if said.kind not in ("", asked):
            notes.append(f"{where}: {marked}: {said.kind}; {asked} is used, as requested")
    elif said.kind and said.kind != told:
        chosen["prediction_type"] = said.kind
        notes.append(
            f"{where}: {marked}: it predicts {said.kind}, and the scheduler's config says {told}: "
            f"{said.kind} is taken. If that is wrong, give {give}"
        )
    rescaled = scheduler.get("rescale_betas_zero_snr") is True
    overruled = asked and said.kind not in ("", asked)  # then its other markers are overruled too
    if said.denied and rescaled:
        notes.append(
            f"{where}: {', '.join(said.denied)}: its schedule is not rescaled, and the scheduler's "
            "config says that it is: the config is followed"
        )
    if said.zero_snr and overruled and not rescaled:
        notes.append(f"{where}: that its noise schedule ends without signal is not followed either")
    elif said.zero_snr and not rescaled:
        chosen["rescale_betas_zero_snr"] = True
        notes.append(
            f"{where}: {marked}: its noise schedule ends without signal, and the scheduler's "
            "config does not say so: rescale_betas_zero_snr is taken as true"
        )
    config |= chosen
    kind = config.get("prediction_type") or "epsilon"
    if kind == "epsilon" and config.get("rescale_betas_zero_snr") is True:
        notes.append(
            f"{where}: epsilon on a noise schedule that ends without signal: where there is "
            "nothing but noise, epsilon says nothing about the image; v_prediction is usual"
        )
    if chosen and isinstance(config.get("_use_default_values"), list):
        left = [key for key in config["_use_default_values"] if key not in chosen]
        config["_use_default_values"] = left
    return config, notes


__all__ = ["check_configs", "check_file", "check_unet_config", "check_vae", "decide_prediction"]
