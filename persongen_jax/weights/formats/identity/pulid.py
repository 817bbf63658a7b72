"""PuLID's files for SDXL (Guo et al., arXiv 2404.16022): versions 1 and 1.1.

``id_adapter.*`` is the encoder of a face (models/encoders/pulid.py), whose names tell the versions
apart; ``id_adapter_attn_layers.{i}.id_to_k.weight`` and ``.id_to_v.weight`` are the keys and values
of the attention that reads it (models/id_attention.py), where i numbers the UNet's attention layers
as diffusers does (``processors``), so that only odd numbers occur. ``pulid_v1.bin`` is a flat torch
pickle (it needs the convert extra). huchenlei's conversion for ComfyUI calls the same tensors
``image_proj.*`` and ``ip_adapter.{i}.to_{k,v}_ip.weight``.
"""

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from persongen_jax.models.encoders.pulid import IDEncoder, IDFormer
from persongen_jax.models.id_attention import IDCrossAttention
from persongen_jax.weights.errors import KeyMismatch, UnsupportedAdapter, WeightsError
from persongen_jax.weights.files.directory import open_file
from persongen_jax.weights.files.safetensors_file import write_safetensors
from persongen_jax.weights.files.source import OpenedFile, Renaming, TensorSource, closed_on_error
from persongen_jax.weights.formats.identity.shared import (
    HEAD_DIM_NOTE,
    branch_slots,
    check_unet,
    cross_layers,
    head_dim_notes,
    read_head_dim,
)
from persongen_jax.weights.recognition.kinds import NAMES, classify
from persongen_jax.weights.recognition.layout import unwrapped
from persongen_jax.weights.recognition.pulid import ENCODER, FLUX, LAYERS, pulid_version
from persongen_jax.weights.slots import Slot, fill_slots, module_slots, write_slots

ENCODERS = {"v1": IDEncoder, "v1.1": IDFormer}
FILES = "pulid_v1.bin or pulid_v1.1.safetensors from https://huggingface.co/guozinan/PuLID"

_KEY = re.compile(r"id_adapter\..+|id_adapter_attn_layers\.\d+\.id_to_[kv]\.weight")
_CONVERTED = re.compile(r"ip_adapter\.(\d+)\.to_([kv])_ip\.weight")


class PulidFile(OpenedFile):
    """A PuLID file, open for reading; a context manager.

    Attributes:
        tensors: all tensors of the file, under the published names.
        version: "v1" or "v1.1".
        sizes: arguments of the version's class in ``ENCODERS``.
        layers: number of cross-attention layers that it has keys and values for.
        width: of the tokens.
    """

    def __init__(self, source: TensorSource):
        source = _published(source)
        super().__init__(source)
        self.version = pulid_version(source.keys())
        if not self.version:
            raise KeyMismatch(
                source.describe(),
                [f"{ENCODER}body.0.weight"],
                [],
                remedy=f"It is no PuLID file: take {FILES}.",
            )
        strange = [key for key in source.keys() if not _KEY.fullmatch(key)]
        names = [key for key in source.keys() if key.endswith(".id_to_k.weight")]
        absent = [] if names else [f"{LAYERS}*.id_to_k.weight"]
        if strange or absent:
            raise KeyMismatch(source.describe(), absent, strange, remedy="It is no PuLID file.")
        self.sizes = (_sizes_v1 if self.version == "v1" else _sizes_v11)(source)
        self.layers, self.width = len(names), source.info(names[0])[1][-1]


def read_pulid(path: str | os.PathLike) -> PulidFile:
    """Open a PuLID file, ``.bin`` or ``.safetensors``, of either version.

    Raises:
        MissingFile: there is none.
        MissingDependency: a ``.bin``, and no PyTorch.
        UnsupportedAdapter: another kind of file, with its name.
        KeyMismatch: names that PuLID does not have.
    """
    with closed_on_error(unwrapped(open_file(path))) as file:
        return PulidFile(file)


def is_pulid(path: str | os.PathLike) -> bool:
    """Whether a weight file is PuLID's for SDXL, converted or not."""
    with unwrapped(open_file(path)) as file:
        return bool(pulid_version(file.keys()))


def _published(source: TensorSource) -> TensorSource:
    """``source`` under the published names; UnsupportedAdapter for another kind of file."""
    keys = source.keys()
    if any(FLUX.match(key) for key in keys):
        raise UnsupportedAdapter(f"{source.describe()}: is PuLID for FLUX; take {FILES}.")
    if not pulid_version(keys):
        kind, _ = classify(source)
        raise UnsupportedAdapter(f"{source.describe()}: is {NAMES[kind]}; take {FILES}.")
    if any(key.startswith(ENCODER) for key in keys):
        return source
    table = Renaming(source)
    for key in keys:
        match = _CONVERTED.fullmatch(key)
        if match:
            table.add(f"{LAYERS}{match[1]}.id_to_{match[2]}.weight", key)
        else:
            table.add(re.sub(r"^image_proj\.", ENCODER, key), key)
    return table.source()


# ---- The encoder's sizes, derived from its tensors -----------------------------------------------


def _shapes(source, names: Iterable[str]) -> list[tuple[int, ...]]:
    absent = [ENCODER + name for name in names if ENCODER + name not in source]
    if absent:
        raise KeyMismatch(source.describe(), absent, [], remedy="Fetch the file again.")
    return [source.info(ENCODER + name)[1] for name in names]


def _sizes_v1(source) -> dict[str, Any]:
    names = ("body.0.weight", "body.6.weight", "mapping_0.6.weight")
    (_, id_features), (rows, _), (features, in_features) = _shapes(source, names)
    sizes = {"id_features": id_features, "in_features": in_features, "features": features}
    return {**sizes, "num_id_tokens": rows // features}


def _sizes_v11(source) -> dict[str, Any]:
    names = ["latents", "proj_out", "mapping_0.0.weight", "layers.0.0.to_q.weight"]
    names += ["id_embedding_mapping.0.weight", "id_embedding_mapping.6.weight"]
    names += ["layers.0.1.1.weight"]
    latents, out, maps, inner, first, last, hidden = _shapes(source, names)
    head_dim = read_head_dim(source, inner[0])
    return {
        "id_features": first[1],
        "in_features": maps[1],
        "features": latents[2],
        "out_features": out[1],
        "heads": inner[0] // head_dim,
        "head_dim": head_dim,
        "hidden_features": hidden[0],
        "num_id_tokens": last[0] // latents[2],
        "num_tokens": latents[1],
    }


# ---- Into a model and out of it ----------------------------------------------------------------


def load_pulid_into(model: Any, path: str | os.PathLike, branch: str = "identity") -> None:
    """Fill a model that has the method attached from a PuLID file, in place.

    Args:
        model: has ``unet`` with the branch, and ``id_adapter``, one of ``ENCODERS``.
        branch: the stream's name.

    Raises:
        UnsupportedAdapter: another kind of file, the other version, or one for another UNet.
        WeightsError: the method is not attached.
        KeyMismatch: a tensor missing, unexpected or misshapen; all are listed.
    """
    with read_pulid(path) as file:
        check_pulid(model, file, branch)
        fill_slots(_slots(model, branch), file.tensors)


def check_pulid(model: Any, file: PulidFile, branch: str = "identity") -> None:
    """Raises what :func:`load_pulid_into` does; reads no tensor, so shapes suffice in ``model``."""
    slots = _slots(model, branch)
    if file.version != model.id_adapter.version:
        raise UnsupportedAdapter(
            f"{file.describe()}: is PuLID {file.version}, and the model's encoder that of "
            f"{model.id_adapter.version}. Set the config's pulid_version={file.version!r}."
        )
    check_unet(file, model.unet)
    found = {key: tuple(file.tensors.info(key)[1]) for key in file.tensors.keys()}
    missing, unexpected = sorted(slots.keys() - found), sorted(found.keys() - slots.keys())
    misshapen = {
        key: (shape, slots[key].shape)
        for key, shape in found.items()
        if key in slots and shape != slots[key].shape
    }
    if missing or unexpected or misshapen:
        raise KeyMismatch(file.describe(), missing, unexpected, misshapen)


def write_pulid(file: PulidFile, path: str | os.PathLike) -> None:
    """The same tensors under the published names, as safetensors; dtypes stay."""
    source = file.tensors

    def entry(key):
        dtype, shape = source.info(key)
        return key, shape, dtype, lambda: source.read(key)

    notes = {k: v for k, v in source.metadata.items() if k == HEAD_DIM_NOTE}
    write_safetensors(Path(path), [entry(key) for key in source.keys()], {"format": "pt", **notes})


def save_pulid(model: Any, path: str | os.PathLike, branch: str = "identity") -> None:
    """Write a model's encoder and branch as a PuLID file; tensors keep their stored dtype.

    Args:
        model: as for :func:`load_pulid_into`.
        path: "….safetensors", or "….bin" (needs the convert extra), written atomically. PuLID's
            own code reads version 1 from the latter, version 1.1 from the former.

    Raises:
        WeightsError: another extension, the method is not attached, or heads of another width than
            PuLID's, which a .bin cannot say.
        MissingDependency: ``.bin`` without PyTorch.
    """
    slots, notes = _slots(model, branch), {}
    if model.id_adapter.version == "v1.1":
        notes = head_dim_notes(model.id_adapter.layers[0][0], path)
    write_slots(path, slots, notes, nested=False)


def _slots(model, branch) -> dict[str, Slot]:
    """Leaves by the file's keys, in its order."""
    encoder = getattr(model, "id_adapter", None)
    layers = cross_layers(model.unet).values()
    there = all(isinstance(each, IDCrossAttention) and branch in each.branches for each in layers)
    if encoder is None or not there:
        raise WeightsError(
            f"the model has no id_adapter with an attention branch {branch!r}: attach the method "
            "pulid before its weights"
        )
    slots = module_slots(encoder, ENCODER)
    return slots | branch_slots(model.unet, branch, LAYERS + "{}.id_to_{}.weight")


__all__ = [
    "ENCODERS",
    "PulidFile",
    "check_pulid",
    "is_pulid",
    "load_pulid_into",
    "read_pulid",
    "save_pulid",
    "write_pulid",
]
