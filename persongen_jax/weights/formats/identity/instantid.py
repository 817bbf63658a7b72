"""InstantID's ``ip-adapter.bin`` for SDXL (Wang et al., arXiv 2401.07519).

``image_proj.*`` is a resampler that makes a face recogniser's raw embedding 16 tokens;
``ip_adapter.{i}.to_k_ip.weight`` and ``.to_v_ip.weight`` are the keys and values of the branch that
reads them, where i numbers the UNet's attention layers as diffusers does (``processors``). The
names are those of an IP-Adapter plus; what tells them apart is the width that the resampler reads.
The IdentityNet that belongs to it is an ordinary ControlNet (formats/controlnet.py).
"""

import os
import re
from typing import Any

from persongen_jax.models.branches import ParallelCrossAttention
from persongen_jax.models.encoders.resampler import Resampler
from persongen_jax.weights.errors import KeyMismatch, UnsupportedAdapter, WeightsError
from persongen_jax.weights.files.directory import open_file
from persongen_jax.weights.files.source import OpenedFile, TensorSource, closed_on_error
from persongen_jax.weights.formats.identity.shared import (
    HEAD_DIM,
    branch_slots,
    check_unet,
    cross_layers,
    head_dim_notes,
    read_head_dim,
)
from persongen_jax.weights.recognition.kinds import ADAPTER_NOTE, NAMES, classify
from persongen_jax.weights.recognition.layout import unwrapped
from persongen_jax.weights.slots import Slot, fill_slots, module_slots, write_slots

KIND = "instantid"
IMAGE_PROJ, ADAPTER = "image_proj.", "ip_adapter."

# What the published IP-Adapters plus read, by its width.
_IMAGE_WIDTHS = {1280: "ViT-H's patches", 1664: "ViT-bigG's patches"}
_KEY = re.compile(r"image_proj\..+|ip_adapter\.\d+\.to_[kv]_ip\.weight")


class InstantIDFile(OpenedFile):
    """InstantID's adapter file, open for reading; a context manager.

    Attributes:
        tensors: all tensors of the file.
        sizes: arguments of models.encoders.resampler.Resampler; ``in_features`` is the length of
            the embeddings that it reads.
        layers: number of cross-attention layers that it has keys and values for.
        width: of the tokens.
        kind, rank: as an IPAdapterFile's: a resampler, no LoRA.
    """

    kind, rank = "plus", None

    def __init__(self, source: TensorSource):
        super().__init__(source)
        _check_kind(source)
        self.sizes = _sizes(source)
        names = [key for key in source.keys() if key.endswith(".to_k_ip.weight")]
        self.layers, self.width = len(names), source.info(names[0])[1][-1]


def read_instantid(path: str | os.PathLike) -> InstantIDFile:
    """Open the file, ``.bin`` or ``.safetensors``.

    Raises:
        MissingFile: there is none.
        MissingDependency: a ``.bin``, and no PyTorch.
        UnsupportedAdapter: another kind of file, with its name.
        KeyMismatch: names that InstantID does not have.
    """
    with closed_on_error(unwrapped(open_file(path))) as file:
        return InstantIDFile(file)


def is_instantid(path: str | os.PathLike) -> bool:
    """Whether a weight file is InstantID's: an IP-Adapter plus that reads face embeddings."""
    with unwrapped(open_file(path)) as file:
        return classify(file)[0] == KIND


def _check_kind(source):
    kind, _ = classify(source)
    width = source.info(f"{IMAGE_PROJ}proj_in.weight")[1][-1] if kind == "ip-adapter-plus" else 0
    if kind not in (KIND, "ip-adapter-plus") or width in _IMAGE_WIDTHS:
        what = NAMES[kind]
        if width:
            what += f", which reads {_IMAGE_WIDTHS[width]} ({width} wide)"
        raise UnsupportedAdapter(
            f"{source.describe()}: is {what}; InstantID's adapter is needed, ip-adapter.bin from "
            "https://huggingface.co/InstantX/InstantID."
        )
    strange = [key for key in source.keys() if not _KEY.fullmatch(key)]
    wanted = ("image_proj.layers.0.0.to_q.weight", "image_proj.layers.0.1.1.weight")
    absent = [key for key in (*wanted, "image_proj.proj_out.weight") if key not in source]
    if not any(key.endswith(".to_k_ip.weight") for key in source.keys()):
        absent.append(f"{ADAPTER}*.to_k_ip.weight")
    if strange or absent:
        remedy = "It is not InstantID's adapter."
        raise KeyMismatch(source.describe(), absent, strange, remedy=remedy)


def _sizes(source) -> dict[str, Any]:
    def shape(name):
        return source.info(f"{IMAGE_PROJ}{name}")[1]

    _, num_tokens, features = shape("latents")
    inner = shape("layers.0.0.to_q.weight")[0]
    head_dim = read_head_dim(source, inner)
    layers = {match[1] for key in source.keys() if (match := _LAYER.match(key))}
    return {
        "in_features": shape("proj_in.weight")[1],
        "features": features,
        "out_features": shape("proj_out.weight")[0],
        "heads": inner // head_dim,
        "head_dim": head_dim,
        "num_layers": len(layers),
        "hidden_features": shape("layers.0.1.1.weight")[0],
        "num_tokens": num_tokens,
    }


_LAYER = re.compile(r"image_proj\.layers\.(\d+)\.")


def published_sizes(in_features: int, text_width: int) -> dict[str, Any]:
    """The published resampler, scaled to a UNet that reads text of ``text_width``.

    At SDXL's 2048: 20 heads of 64, four layers, 16 tokens.
    """
    heads = max(1, round(text_width * 20 / 2048))
    return {
        "in_features": in_features,
        "features": heads * HEAD_DIM,
        "out_features": text_width,
        "heads": heads,
        "head_dim": HEAD_DIM,
        "num_layers": 4,
        "num_tokens": 16,
    }


# ---- Into a model and out of it ----------------------------------------------------------------


def load_instantid_into(model: Any, path: str | os.PathLike, branch: str = "identity") -> None:
    """Fill a model that has the method attached from the file, in place.

    Args:
        model: has ``unet`` with the branch, and the Resampler ``image_proj``.
        branch: the stream's name.

    Raises:
        UnsupportedAdapter: another kind of file, or one for another UNet.
        WeightsError: the method is not attached.
        KeyMismatch: a tensor missing, unexpected or misshapen; all are listed.
    """
    with read_instantid(path) as file:
        slots = _slots(model, branch)
        check_unet(file, model.unet)
        fill_slots(slots, file.tensors)


def save_instantid(model: Any, path: str | os.PathLike, branch: str = "identity") -> None:
    """Write a model's resampler and branch as InstantID's adapter; tensors keep their dtype.

    The IdentityNet goes with it: weights.formats.controlnet.save_controlnet.

    Args:
        model: as for :func:`load_instantid_into`.
        path: "….safetensors", or "….bin" (needs the convert extra), written atomically.

    Raises:
        WeightsError: another extension, the method is not attached, or heads of another width than
            InstantID's, which a .bin cannot say.
        MissingDependency: ``.bin`` without PyTorch.
    """
    slots = _slots(model, branch)
    notes = {ADAPTER_NOTE: KIND, **head_dim_notes(model.image_proj.layers[0][0], path)}
    write_slots(path, slots, notes)


def _slots(model, branch) -> dict[str, Slot]:
    """Leaves by the file's keys."""
    image_proj = getattr(model, "image_proj", None)
    layers = cross_layers(model.unet).values()
    parallel = all(isinstance(layer, ParallelCrossAttention) for layer in layers)
    there = parallel and all(branch in getattr(layer, "branches", {}) for layer in layers)
    if not isinstance(image_proj, Resampler) or not there:
        raise WeightsError(
            f"the model has no resampler with a parallel attention branch {branch!r}: attach the "
            "method instantid before its weights"
        )
    slots = module_slots(image_proj, IMAGE_PROJ)
    return slots | branch_slots(model.unet, branch, ADAPTER + "{}.to_{}_ip.weight")
