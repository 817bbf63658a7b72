"""Writes LoRA files for other programs: diffusers, kohya, ComfyUI and PEFT.

Tensors are written unchanged, DoRA's magnitudes with them. The formats differ in where alpha goes:
kohya's and ComfyUI's files have it as a tensor; diffusers keeps it in the file's metadata, PEFT in
an adapter_config.json.
"""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from persongen_jax.weights.errors import UnsupportedAdapter
from persongen_jax.weights.files.safetensors_file import write_safetensors
from persongen_jax.weights.formats.lora.kinds import Change, LoraWeights
from persongen_jax.weights.formats.lora.opening import CONFIG, PEFT_FILES
from persongen_jax.weights.recognition.lora_names import COMPONENTS, METADATA_KEY, sgm_names
from persongen_jax.weights.recognition.sgm_names import rename_by_prefix
from persongen_jax.weights.saver import write_json

Adapters = Mapping[str, Mapping[str, LoraWeights | Change]]

_KOHYA = {"unet": "lora_unet_", "text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_"}
_COMFY = {
    "unet": "diffusion_model.",
    "text_encoder": "text_encoders.clip_l.transformer.",
    "text_encoder_2": "text_encoders.clip_g.transformer.",
}
# The classes that a PEFT folder names, and their modules.
_CLASSES = {
    "unet": ("UNet2DConditionModel", "diffusers.models.unets.unet_2d_condition"),
    "text_encoder": ("CLIPTextModel", "transformers.models.clip.modeling_clip"),
    "text_encoder_2": ("CLIPTextModelWithProjection", "transformers.models.clip.modeling_clip"),
}


def write_lora(
    path: str | os.PathLike, adapters: Adapters, metadata: Mapping[str, str] | None = None
) -> None:
    """Write a LoRA file that has the same effect with diffusers' ``load_lora_weights``.

    Alphas go into the metadata, where current versions of diffusers look for them; older versions
    assume alpha = rank. If only some modules have an alpha, the others read back as alpha = rank.

    Args:
        path: the file, usually ``pytorch_lora_weights.safetensors``.
        adapters: component -> module path -> ``LoraWeights``, as ``read_lora`` returns; or for
            DoRA a ``Change`` of one such and a magnitude [out].
        metadata: additional text metadata.

    Raises:
        UnsupportedAdapter: an unknown component, nothing to write, or adapters other than LoRA and
            DoRA, which these formats have no place for.
        BadEntry: anything that ``write_safetensors`` refuses.
    """
    _check(path, adapters)
    entries = []
    for component, module, lora, magnitude in _layers(adapters):
        stem = _diffusers_stem(component, module)
        entries += _pair(f"{stem}.down.weight", f"{stem}.up.weight", lora)
        vector = f"{component}.{_inner(component, module)}.lora_magnitude_vector"
        entries += _magnitude(vector, magnitude, _peft_shape(lora))
    notes = {"format": "pt", **(metadata or {})}
    if any(lora.alpha is not None for *_, lora, _ in _layers(adapters)):
        settings = {}
        for component, weights in adapters.items():
            # The UNet's exceptions are anchored, as diffusers anchors its own. Text encoders' paths
            # begin with text_model. only in some versions of transformers.
            own = _peft_settings(weights, "^" if component == "unet" else "") if weights else {}
            settings |= {f"{component}.{name}": value for name, value in own.items()}
        notes[METADATA_KEY] = json.dumps(settings, indent=2, sort_keys=True)
    write_safetensors(path, entries, notes)


def write_kohya_lora(
    path: str | os.PathLike,
    adapters: Adapters,
    metadata: Mapping[str, str] | None = None,
    *,
    sgm_modules: Iterable[str] | None = None,
    layers_per_block: int = 2,
) -> None:
    """Write a LoRA file in kohya's spelling, which most user interfaces read.

    Every module gets an alpha, a float32 number: where ``LoraWeights`` has None, its rank. What is
    not listed here is as in :func:`write_lora`.

    Args:
        sgm_modules: None for diffusers' names of the UNet's blocks (down_blocks_1_…). With the
            paths of all the UNet's modules, sgm's names (input_blocks_4_1_…), which kohya's own
            trainer writes for SDXL.
        layers_per_block: the UNet's, which sgm's block numbers depend on.

    Raises:
        WeightsError: as :func:`write_lora`.
    """
    _check(path, adapters)
    to_sgm = {} if sgm_modules is None else sgm_names(set(sgm_modules), layers_per_block)
    entries, ranks, alphas = [], set(), set()
    for component, module, lora, magnitude in _layers(adapters):
        stem = _KOHYA[component] + _original(component, module, to_sgm).replace(".", "_")
        entries += _with_alpha(stem, lora, magnitude)
        ranks.add(lora.rank)
        alphas.add(float(_alpha(lora)))
    notes = {"ss_network_module": "networks.lora", **(metadata or {})}
    # kohya's tools show these; a file with several values has none to show.
    if len(ranks) == len(alphas) == 1:
        notes |= {"ss_network_dim": str(*ranks), "ss_network_alpha": str(*alphas)}
    write_safetensors(path, entries, notes)


def write_comfy_lora(
    path: str | os.PathLike,
    adapters: Adapters,
    metadata: Mapping[str, str] | None = None,
    *,
    sgm_modules: Iterable[str],
    layers_per_block: int = 2,
) -> None:
    """Write a LoRA file with the names of ComfyUI's own models; arguments as above."""
    _check(path, adapters)
    to_sgm, entries = sgm_names(set(sgm_modules), layers_per_block), []
    for component, module, lora, magnitude in _layers(adapters):
        stem = _COMFY[component] + _original(component, module, to_sgm)
        entries += _with_alpha(stem, lora, magnitude)
    write_safetensors(path, entries, {"format": "pt", **(metadata or {})})


def write_peft_folder(
    folder: str | os.PathLike,
    adapters: Adapters,
    metadata: Mapping[str, str] | None = None,
    *,
    base: str = "",
) -> None:
    """Write a folder that PEFT's ``PeftModel.from_pretrained(model, folder)`` opens.

    A UNet's adapter goes into ``folder`` itself if it is the only one, otherwise each component's
    into a subfolder of its name.

    Args:
        base: the name of the base model, for the config.

    Raises:
        WeightsError: as :func:`write_lora`.
    """
    _check(folder, adapters)
    for component, weights in adapters.items():
        if not weights:
            continue
        inside = Path(folder) if set(adapters) == {"unet"} else Path(folder) / component
        inside.mkdir(parents=True, exist_ok=True)
        entries = []
        for _, module, lora, magnitude in _layers({component: weights}):
            stem = f"base_model.model.{_inner(component, module)}"
            entries += _pair(f"{stem}.lora_A.weight", f"{stem}.lora_B.weight", lora)
            entries += _magnitude(f"{stem}.lora_magnitude_vector", magnitude, _peft_shape(lora))
        write_safetensors(inside / PEFT_FILES[0], entries, {"format": "pt", **(metadata or {})})
        name, library = _CLASSES[component]
        settings = _peft_settings(weights, "^" if component == "unet" else "")
        if component != "unet":
            targets = [_inner(component, module) for module in weights]
            settings["target_modules"] = sorted(targets)
        write_json(
            inside / CONFIG,
            {
                "peft_type": "LORA",
                "task_type": None,
                "auto_mapping": {"base_model_class": name, "parent_library": library},
                "base_model_name_or_path": base,
                "bias": "none",
                "inference_mode": True,
                "init_lora_weights": True,
                "lora_dropout": 0.0,
                **settings,
            },
        )


def _check(path, adapters):
    unknown = sorted(set(adapters) - set(COMPONENTS))
    if unknown or not any(adapters.values()):
        raise UnsupportedAdapter(
            f"{path}: cannot write adapters of {unknown or 'no module'}. Known are {COMPONENTS}."
        )
    for component, weights in adapters.items():
        for module, adapter in weights.items():
            if not isinstance(adapter, LoraWeights) and not _is_dora(adapter):
                raise UnsupportedAdapter(
                    f"{path}: {component}.{module} has {adapter.name}, which a LoRA file has no "
                    "place for; keep the file that it was read from, which generate reads by "
                    "--lora."
                )


def _is_dora(adapter: Change) -> bool:
    """Whether it is one LoRA and the magnitudes of the outputs, and nothing else."""
    plain = len(adapter.products) == 1 and isinstance(adapter.products[0], LoraWeights)
    outputs = adapter.magnitude is not None and adapter.magnitude.ndim == 1
    return plain and outputs and adapter.bias is None and adapter.gain is None


def _layers(adapters):
    """(component, module path, LoraWeights, magnitude [out] or None) of every layer."""
    for component, weights in adapters.items():
        for module, adapter in sorted(weights.items()):
            if isinstance(adapter, LoraWeights):
                yield component, module, adapter, None
            else:
                yield component, module, adapter.products[0], adapter.magnitude


def _magnitude(key: str, magnitude, shape: tuple[int, ...]) -> list:
    """The entry of DoRA's magnitude; none without."""
    if magnitude is None:
        return []
    array = magnitude.reshape(shape)
    return [(key, array.shape, array.dtype, lambda: array)]


def _peft_shape(lora) -> tuple[int, ...]:
    return (-1,) if lora.down.ndim == 2 else (1, -1, 1, 1)


def _inner(component, module) -> str:
    """The path within the class; text encoders' with ``text_model.``."""
    return module if component == "unet" or module == "text_projection" else f"text_model.{module}"


def _original(component, module, to_sgm) -> str:
    if component == "unet":
        return rename_by_prefix(to_sgm, module) or module
    return _inner(component, module)


def _diffusers_stem(component, module) -> str:
    # diffusers recognises the text encoders' spelling by the last word; and it removes text_model.
    # if the class no longer has it.
    word = "lora" if component == "unet" else "lora_linear_layer"
    return f"{component}.{_inner(component, module)}.{word}"


def _pair(down: str, up: str, lora) -> list:
    halves = ((down, lora.down), (up, lora.up))
    return [(key, array.shape, array.dtype, lambda array=array: array) for key, array in halves]


def _alpha(lora):
    return np.float32(lora.rank if lora.alpha is None else lora.alpha)


def _with_alpha(stem: str, lora, magnitude) -> list:
    pair = _pair(f"{stem}.lora_down.weight", f"{stem}.lora_up.weight", lora)
    # A column of one number per output, as LyCORIS' files have it.
    own = _magnitude(f"{stem}.dora_scale", magnitude, (-1, *[1] * (lora.down.ndim - 1)))
    return [*pair, (f"{stem}.alpha", (), np.dtype(np.float32), lambda: _alpha(lora)), *own]


def _peft_settings(weights, anchor: str) -> dict:
    """PEFT's LoraConfig fields for one component: common values, and exceptions by module."""
    layers = list(_layers({"": weights}))
    ranks = {module: lora.rank for _, module, lora, _ in layers}
    alphas = {
        module: float(lora.rank if lora.alpha is None else lora.alpha)
        for _, module, lora, _ in layers
    }

    def shared_arguments(values):
        return max(set(values.values()), key=list(values.values()).count)

    def exceptions(values):
        usual = shared_arguments(values)
        return {anchor + module: v for module, v in sorted(values.items()) if v != usual}

    return {
        "r": shared_arguments(ranks),
        "lora_alpha": shared_arguments(alphas),
        "rank_pattern": exceptions(ranks),
        "alpha_pattern": exceptions(alphas),
        "target_modules": sorted(weights),
        **({"use_dora": True} if any(own is not None for *_, own in layers) else {}),
    }


__all__ = ["write_comfy_lora", "write_kohya_lora", "write_lora", "write_peft_folder"]
