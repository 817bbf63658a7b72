"""What can be loaded onto the pipeline's model: an identity method's weights, and LoRA files.

``adapters`` maps a LoRA's name to ({component: {dotted module path: LoraWeights or Change}},
weight); any number of them acts at once. A method's own LoRA is one of them, "method:NAME".
"""

import math
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from persongen_jax.methods.base import Model
from persongen_jax.models.lora import check_mergeable, merge_adapters, remove_adapters
from persongen_jax.parallel.sharding import replicated
from persongen_jax.pipeline.words import Words, read_words
from persongen_jax.settings import check_version
from persongen_jax.systems.sdxl_config import sdxl_defaults
from persongen_jax.training.partition import leaf_paths
from persongen_jax.training.trained import load_trained
from persongen_jax.weights.files.directory import read_config
from persongen_jax.weights.formats.adapters import (
    apply_adapter,
    check_adapters,
    extract_adapter,
    module_paths,
)
from persongen_jax.weights.formats.identity.instantid import is_instantid
from persongen_jax.weights.formats.identity.ip_adapter_variants import FACES
from persongen_jax.weights.formats.identity.pulid import is_pulid
from persongen_jax.weights.formats.ip_adapter import is_ip_adapter, read_ip_adapter
from persongen_jax.weights.formats.lora.kinds import LoraWeights
from persongen_jax.weights.formats.lora.reading import no_effect, read_lora
from persongen_jax.weights.formats.photomaker import has_tower_like, read_photomaker
from persongen_jax.weights.formats.sdxl.loading import SDXLBase

METHOD_PREFIX = "method:"  # prefix of the name of a method's own LoRA
LORA_COMPONENTS = ("unet", "text_encoder", "text_encoder_2")

Adapters = dict[str, tuple[dict, float]]


# ---- Identity methods ------------------------------------------------------------------------


def read_method(
    base: SDXLBase,
    name: str | None,
    weights: str | Path,
    networks: dict[str, Any],
    mesh: Mesh,
    options: Mapping[str, Any] | None = None,
) -> tuple[ConfigDict, dict | None]:
    """(config, trained) of ``weights``; the arguments are Pipeline.load_method's.

    ``networks``: its "encoder", "clip" and "controlnet", "" for those that are not given.
    ``options``: what a call says of the method; method_options.py puts them into the config.

    ``config`` is what the method's ``attach`` and ``fields`` need. ``trained`` has a run's arrays
    by path; None for a file, which ``attach`` reads from ``config.start_from``.

    Raises:
        FileNotFoundError: there is no checkpoint.
        ValueError: weights of another method than ``name``.
    """
    if not Path(weights).exists() and Path(weights).parent.name != "checkpoints":
        raise FileNotFoundError(f"{weights}: no such file or folder")
    trained, weights = None, find_weights(weights)
    if not Path(weights).is_file():
        trained, config = load_trained(weights, replicated(mesh))
        check_version(config, weights)
        if name not in (None, config["method"]):
            raise ValueError(f"{weights}: holds weights of {config['method']!r}, not of {name!r}")
    else:
        config = config_of_file(weights, name, base.folder or base.path, options or {})
    here: dict[str, Any] = {
        "base": base.folder or base.path,
        "base_config": "",
        "dtype": jnp.dtype(base.model.unet.dtype).name,
    }
    if trained is None:
        here["start_from"] = str(weights)
    if "pulid_few_steps" in config:
        here["pulid_few_steps"] = 0  # what only its training reads need not be there
    given = {key: str(path) for key, path in networks.items() if path}
    here |= networks_of(config, given, weights, is_run=trained is not None)
    return ConfigDict({**config, **here}), trained


def networks_of(
    config: dict, networks: dict[str, str], weights: str | Path, *, is_run: bool
) -> dict[str, str]:
    """The config's keys for the networks of a call; ValueError for one that nothing reads.

    Args:
        is_run: whether it is a run's, which has every key; one that its method reads is not empty.
    """
    encoder = networks.get("encoder", "")
    there = [key for key in ("face_encoder", "controlnet") if key in config]
    reads = {key for key in there if config[key] or not is_run}
    reads_faces = "face_encoder" in reads  # it may have an image encoder as well
    known = {"clip": "id_encoder"} if reads_faces else {}
    known |= {"controlnet": "controlnet"} if "controlnet" in reads else {}
    for name, path in networks.items():
        if name not in ("encoder", *known):
            raise ValueError(f"{name}={path}: {weights} has no part that reads it; leave it out")
    here = {key: networks[name] for name, key in known.items() if name in networks}
    if encoder:
        keys = ("face_encoder",) if reads_faces else ("id_encoder", "face_net")
        here |= dict.fromkeys(keys, encoder)
    return here


def config_of_file(
    weights: str | Path,
    name: str | None,
    base: str | Path,
    options: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, Any]:
    """What ``attach`` and ``fields`` need to know about a published weight file.

    Args:
        weights: a PhotoMaker file, an IP-Adapter, InstantID's or PuLID.
        name: of the method; None: the file's own.
        base: SDXL's folder, next to which an image encoder may be.
        options: what a call says of it.

    Raises:
        ValueError: weights of another method than ``name``.
        WeightsError: a file that is none of these.
    """
    if is_pulid(weights) or name == "pulid":  # converted, it has an IP-Adapter's names
        if name not in (None, "pulid"):
            raise ValueError(f"{weights}: is a PuLID file, not one for {name!r}")
        own = {key: value for key, value in sdxl_defaults().items() if key.startswith("pulid_")}
        networks = {"face_encoder": "", "id_encoder": ""}
        return {"method": "pulid", "trigger_word": "img", **networks, **own}
    # Of a width that no published file has, an IP-Adapter plus looks like InstantID's adapter.
    if is_instantid(weights) or name == "instantid":
        if name not in (None, "instantid"):
            raise ValueError(f"{weights}: is InstantID's adapter, not one for {name!r}")
        own = {"face_encoder": "", "controlnet": "", "instantid_references": "mean"}
        return {"method": "instantid", "trigger_word": "img", **own}
    if is_ip_adapter(weights):
        if name not in (None, "ip_adapter"):
            raise ValueError(f"{weights}: is an IP-Adapter file, not one for {name!r}")
        config = _ip_adapter_config(weights, options)
    else:
        config = _photomaker_config(base, weights, name or "photomaker")
    return config


STATE_FILES = ("model.safetensors", "pytorch_model.bin")  # accelerate's


def find_weights(path: str | Path) -> str | Path:
    """The file in the folder of an IP-Adapter's trainer; any other path unchanged."""
    folder = Path(path)
    is_run = (folder / "checkpoints").is_dir() or "checkpoints" in (folder.name, folder.parent.name)
    if not folder.is_dir() or is_run:
        return path
    files = [folder / name for name in STATE_FILES if (folder / name).is_file()]
    return files[0] if files and is_ip_adapter(files[0]) else path


def base_arrays(model: Model, trained: dict | None) -> dict:
    """The base's own arrays, by path, that a run has trained; call before attaching a method."""
    leaves = leaf_paths(model) if trained else {}
    return {path: leaves[path].get_value() for path in trained or () if path in leaves}


def _ip_adapter_config(path: str | Path, options: Mapping[str, Any]) -> dict[str, Any]:
    """The config of an IP-Adapter file's variant; says what is assumed of FaceID Plus."""
    config: dict[str, Any] = {"method": "ip_adapter", "trigger_word": "img", "id_encoder": ""}
    with read_ip_adapter(path) as file:
        kind = file.kind
    if kind not in FACES:
        return {**config, "references": "face"}
    if kind == "faceid-plus":
        config |= {"shortcut": True, "s_scale": 1.0}
        if "shortcut" not in options:
            print(
                f"{path}: FaceID Plus, read as version 2, which its tensors do not tell from "
                "version 1 (shortcut=False)",
                file=sys.stderr,
            )
    return {**config, "face_encoder": ""}


def _photomaker_config(base: str | Path, path: str | Path, name: str) -> dict[str, Any]:
    """The config that makes the model fit the file's tensors."""
    beside, versions = Path(base) / "image_encoder", ("photomaker", "photomaker_v2")
    with read_photomaker(path) as file:
        if name in versions:
            if name == versions[1] and file.version == 1:
                raise ValueError(f"{path}: is PhotoMaker v1, not one for {name!r}")
            name = versions[file.version - 1]
        rank = file.rank
        # The file has an image tower, but not its config; a directory next to the base has both,
        # unless it is an IP-Adapter's image encoder.
        same = beside.is_dir() and has_tower_like(file, read_config(beside))
    return {
        "method": name,
        "id_encoder": "" if same else str(path),
        "rank": rank,
        "lora_alpha": float(rank),
        "trigger_word": "img",
        **({"face_encoder": ""} if name == versions[1] else {}),
    }


# ---- LoRA ------------------------------------------------------------------------------------


def read_adapter(path: str | Path, base: SDXLBase, weight: float = 1.0) -> tuple[dict, Words]:
    """A LoRA file's weights by component, and the words bundled with it.

    WeightsError unless they fit the base's model.

    Warns about weights that change nothing at this weight.
    """
    _check_weight(path, weight)
    paths = {part: module_paths(getattr(base.model, part)) for part in LORA_COMPONENTS}
    layers_per_block = base.configs["unet"].get("layers_per_block", 2)
    adapter = read_lora(path, paths, layers_per_block=layers_per_block)
    check_adapters(base.model, adapter, path)
    words = read_words(path, base)
    _warn_of_no_effect(path, adapter, weight)
    return adapter, words


def with_weights(adapters: Adapters, weights: dict[str, float]) -> Adapters:
    """A copy with other weights for some, by name; ValueError for an unknown name."""
    for name, weight in weights.items():
        _check_weight(name, weight)
    return {
        **adapters,
        **{name: (find_adapter(adapters, name)[0], w) for name, w in weights.items()},
    }


def _check_weight(name, weight: float):
    """ValueError unless a strength is a finite number."""
    number = isinstance(weight, (int, float, np.number)) and not isinstance(weight, bool)
    if not number or not math.isfinite(weight):
        raise ValueError(f"LoRA {name}: its weight is {weight!r}; give a finite number, 1 is usual")


def _warn_of_no_effect(path, adapter: dict, weight: float):
    """Warn if a LoRA file changes nothing."""
    if weight == 0:
        _warn(f"{path}: loaded with weight 0, so it changes nothing until that is set")
    if no_effect(adapter):
        loras = [each for layers in adapter.values() for each in layers.values()]
        why = "all of its layers are zero, as before training"
        if all(getattr(each, "scale", 1) == 0 for each in loras):
            why = "its alpha is 0"
        _warn(f"{path}: {why}, so it changes nothing; check that it was saved after training")


def _warn(message: str):
    warnings.warn(message, stacklevel=5)


def take_adapter(model: Model) -> dict:
    """The model's one adapter, as ``read_adapter`` would have returned it."""
    found = {part: extract_adapter(getattr(model, part)) for part in LORA_COMPONENTS}
    return {part: weights for part, weights in found.items() if weights}


def put_adapters(model: Model, adapters: Adapters) -> None:
    """Put these on the model, replacing those that are there."""
    remove_all(model)
    for part in LORA_COMPONENTS:
        for adapter, weight in adapters.values():
            apply_adapter(getattr(model, part), adapter.get(part, {}), weight)


def remove_all(model: Model) -> None:
    """Remove all adapters from the model."""
    for part in LORA_COMPONENTS:
        remove_adapters(getattr(model, part))


def merge_all(model: Model) -> None:
    """Merge all adapters into the weights."""
    for part in LORA_COMPONENTS:
        check_mergeable(getattr(model, part))
    for part in LORA_COMPONENTS:
        merge_adapters(getattr(model, part))


def find_adapter(adapters: Adapters, name: str) -> tuple[dict, float]:
    """(adapter, weight) of this name; ValueError if there is none."""
    if name not in adapters:
        raise ValueError(f"no LoRA {name!r} is loaded; loaded: {sorted(adapters)}")
    return adapters[name]


def method_adapters(adapters: Adapters) -> Adapters:
    """The adapters that belong to a method."""
    return {k: v for k, v in adapters.items() if k.startswith(METHOD_PREFIX)}


def user_adapters(adapters: Adapters) -> Adapters:
    """The adapters that were loaded from files."""
    return {k: v for k, v in adapters.items() if not k.startswith(METHOD_PREFIX)}


def method_scales(adapters: Adapters) -> dict[str, np.ndarray]:
    """Path of a layer of the UNet to [r]: the part of its LoRA's scale that is the method's."""
    own = {}
    if not any("unet" in adapter for adapter, _ in method_adapters(adapters).values()):
        return own
    for name, (adapter, weight) in adapters.items():
        for path, lora in adapter.get("unet", {}).items():
            if not isinstance(lora, LoraWeights):
                continue  # is stored on the layer as a change, not as ranks
            scale = weight * lora.scale if name.startswith(METHOD_PREFIX) else 0.0
            own.setdefault(path, []).append(np.full(lora.rank, scale, np.float32))
    return {path: np.concatenate(columns) for path, columns in own.items()}
