"""Reads and writes SDXL ControlNets: diffusers' directories, and their weight file alone."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from jax.typing import DTypeLike

from persongen_jax.models.layers import LayerOptions, UnusedRngs
from persongen_jax.models.sdxl.controlnet import (
    CONTROLNET_DEFAULTS,
    ControlNetModel,
    controlnet_config,
)
from persongen_jax.parallel.sharding import Shardings
from persongen_jax.weights.errors import BadConfig, MissingFile, WeightsError
from persongen_jax.weights.files.directory import open_component, open_file, read_config
from persongen_jax.weights.formats.sdxl.config_values import check_values
from persongen_jax.weights.loader import load_module
from persongen_jax.weights.recognition.kinds import NAMES, classify
from persongen_jax.weights.saver import save_module

FILE_NAME = "diffusion_pytorch_model.safetensors"
CLASS = "ControlNetModel"
FAMILIES = {768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2.x", 2048: "SDXL"}


def load_controlnet(
    path: str | os.PathLike,
    unet_config: Mapping[str, Any],
    *,
    dtype: DTypeLike = jnp.float32,
    param_dtype: DTypeLike | None = None,
    variant: str | None = None,
    shardings: Shardings | None = None,
) -> tuple[ControlNetModel, dict]:
    """Open a ControlNet for the UNet of this config; and its config.json.

    Args:
        path: a directory with config.json and weights, one that has it as ``controlnet/``, or a
            weight file in diffusers' names, whose config is then the UNet's.
        unet_config: completed, as UNet2DConditionModel has it.
        dtype: of the computation; param_dtype: of the stored weights (default: dtype).
        variant: "fp16" to read ``*.fp16.safetensors``.

    Raises:
        MissingFile: the path does not exist, or the directory has no config.json.
        WeightsError: another kind of network, one made for another base, or a fault of the files.
    """
    path, param_dtype = Path(path), dtype if param_dtype is None else param_dtype
    if not path.exists():
        raise MissingFile(f"{path}: no such file or folder; give a ControlNet's directory.")
    where, config = path, dict(_of_unet(unet_config))
    if path.is_dir():
        where = _folder(path)
        config = read_config(where)
        _check_class(config, where)
    source = open_file(path) if path.is_file() else open_component(where, variant)
    with source:
        kind, _ = classify(source)
        if kind != "controlnet":
            what = NAMES[kind] if kind != "unknown" else "of no layout that is known here"
            raise WeightsError(
                f"{path}: is {what}. Give a ControlNet for SDXL in diffusers' format."
            )
        if path.is_file():
            config |= _seen(source)
        check_fits(config, unet_config, path)
        kw: LayerOptions = {"dtype": dtype, "param_dtype": param_dtype, "rngs": UnusedRngs()}
        net = load_module(lambda: ControlNetModel(config, **kw), source, shardings=shardings)
    return net, config


def save_controlnet(
    net: ControlNetModel, folder: str | os.PathLike, config: Mapping[str, Any] | None = None
) -> None:
    """Write config.json and the weights for diffusers' ``ControlNetModel.from_pretrained``.

    Args:
        config: the one that it was opened with; None: its own.
    """
    save_module(net, folder, dict(config or config_of(net)), file_name=FILE_NAME)


def config_of(net: ControlNetModel) -> dict:
    """A config.json that diffusers' class takes: one number where it does not take one a level."""
    config = {"_class_name": CLASS, **net.config.to_dict()}
    del config["conv_in_kernel"]  # a setting of UNets, always 3 here
    for key in ("layers_per_block", "cross_attention_dim"):
        config[key] = _value(config, key)
    return config


def check_fits(
    config: Mapping[str, Any], unet_config: Mapping[str, Any], where: str | os.PathLike
) -> None:
    """BadConfig unless a ControlNet of this config can add to a UNet of that one."""
    try:
        own = controlnet_config(dict(config))
    except ValueError as error:
        raise BadConfig(f"{where}: {error}") from error
    for key, what in (
        ("cross_attention_dim", "reads text states of width"),
        ("block_out_channels", "has the channels"),
        ("layers_per_block", "has layers per block"),
        ("in_channels", "reads latents with channels"),
        ("projection_class_embeddings_input_dim", "reads additional embeddings of width"),
    ):
        theirs, ours = _value(own, key), _value(unet_config, key)
        if theirs != ours:
            raise BadConfig(
                f"{where}: a ControlNet for another base: it {what} {_said(key, theirs)}, this "
                f"base's UNet {_said(key, ours)}. Give one that was made for this base."
            )


def _folder(path: Path) -> Path:
    """The directory itself, or its ``controlnet/``, as pipelines save it."""
    for folder in (path, path / "controlnet"):
        if (folder / "config.json").is_file():
            return folder
    raise MissingFile(
        f"{path}: no config.json, so it is not a ControlNet's directory in diffusers' format."
    )


def _check_class(config: dict, where: Path) -> None:
    named = config.get("_class_name", CLASS)
    if named != CLASS:
        raise WeightsError(f"{where / 'config.json'}: is of {named}; a {CLASS} is needed.")
    numbers = {key: value for key, value in config.items() if value is not None}
    check_values("unet", numbers, where / "config.json")


def _of_unet(unet_config: Mapping[str, Any]) -> dict:
    """The settings that a ControlNet shares with its UNet."""
    return {key: unet_config[key] for key in CONTROLNET_DEFAULTS if key in unet_config}


def _seen(source) -> dict:
    """The settings that a file without config shows: its text's width, its image's encoder."""
    found, stages = {}, "controlnet_cond_embedding.blocks."
    for key in source.keys():
        if key.endswith("attn2.to_k.weight"):
            found["cross_attention_dim"] = source.info(key)[1][1]
    # Every second layer of the encoder has its stage's own width.
    layers = sorted(
        int(key.removeprefix(stages).split(".")[0])
        for key in source.keys()
        if key.startswith(stages) and key.endswith(".weight")
    )
    widths = [source.info(f"{stages}{n}.weight")[1] for n in layers[::2]]
    last = [source.info(f"{stages}{n}.weight")[1][0] for n in layers[-1:]]
    found["conditioning_embedding_out_channels"] = [shape[0] for shape in widths] + last
    return found


def _value(config, key):
    """A setting; one number where all levels have the same."""
    value = config.get(key)
    if isinstance(value, (list, tuple)):
        same = key != "block_out_channels" and len(set(value)) == 1
        return value[0] if same else tuple(value)
    return value


def _said(key, value) -> str:
    named = key == "cross_attention_dim" and value in FAMILIES
    return f"{value} ({FAMILIES[value]}'s)" if named else str(value)
