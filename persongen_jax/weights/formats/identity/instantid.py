"""InstantID's ``ip-adapter.bin`` for SDXL (Wang et al., arXiv 2401.07519).

``image_proj.*`` is a resampler that makes a face recogniser's raw embedding 16 tokens;
``ip_adapter.{i}.to_k_ip.weight`` and ``.to_v_ip.weight`` are the keys and values of the branch that
reads them, where i numbers the UNet's attention layers as diffusers does (``processors``). The
names are those of an IP-Adapter plus; what tells them apart is the width that the resampler reads.
The IdentityNet that belongs to it is an ordinary ControlNet (formats/controlnet.py).
"""

import os
import re
from pathlib import Path
from typing import Any

from persongen_jax.models.branches import ParallelCrossAttention
from persongen_jax.models.encoders.resampler import Resampler
from persongen_jax.weights.errors import KeyMismatch, UnsupportedAdapter, WeightsError
from persongen_jax.weights.files.directory import open_file
from persongen_jax.weights.files.source import OpenedFile, TensorSource, closed_on_error
from persongen_jax.weights.recognition.kinds import ADAPTER_NOTE, NAMES, classify
from persongen_jax.weights.recognition.layout import unwrapped
from persongen_jax.weights.slots import Slot, fill_slots, module_slots, processors, write_slots

KIND = "instantid"
IMAGE_PROJ, ADAPTER = "image_proj.", "ip_adapter."
HEAD_DIM = 64  # of the resampler; no tensor shows it, and InstantID's code has no other
HEAD_DIM_NOTE = "head_dim"  # in the metadata of our own files, where it is another one

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
    inner, head_dim = shape("layers.0.0.to_q.weight")[0], _head_dim(source)
    if inner % head_dim:
        raise UnsupportedAdapter(
            f"{source.describe()}: its resampler's attention is {inner} wide, which is no multiple "
            f"of {head_dim}, the width of InstantID's heads. A file of another width says so in "
            f"its metadata, {HEAD_DIM_NOTE!r}; a .bin cannot: give the .safetensors file."
        )
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


def _head_dim(source) -> int:
    said = source.metadata.get(HEAD_DIM_NOTE, str(HEAD_DIM))
    if not said.isdecimal() or int(said) == 0:
        raise UnsupportedAdapter(
            f"{source.describe()}: its metadata says {HEAD_DIM_NOTE}={said!r}; a whole number is "
            "needed"
        )
    return int(said)


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
        layers = [layer for name, layer in processors(model.unet).items() if _is_cross(name)]
        width = layers[0].to_k.kernel.shape[0]
        if (file.layers, file.width) != (len(layers), width):
            raise UnsupportedAdapter(
                f"{file.describe()}: has {file.layers} cross-attention layers that read tokens of "
                f"width {file.width}, this UNet {len(layers)} of width {width} (SDXL: 70 of 2048). "
                "Give an adapter that was made for this base."
            )
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
    slots, notes = _slots(model, branch), {ADAPTER_NOTE: KIND}
    attention = model.image_proj.layers[0][0]
    head_dim = attention.to_q.kernel.shape[1] // attention.heads
    if head_dim != HEAD_DIM:
        notes[HEAD_DIM_NOTE] = str(head_dim)
        if Path(path).suffix == ".bin":
            raise WeightsError(
                f"{path}: the resampler's heads are {head_dim} wide and not {HEAD_DIM}, which a "
                ".bin cannot say; write a .safetensors file"
            )
    write_slots(path, slots, notes)


def _slots(model, branch) -> dict[str, Slot]:
    """Leaves by the file's keys."""
    image_proj = getattr(model, "image_proj", None)
    layers = {n: layer for n, layer in processors(model.unet).items() if _is_cross(n)}
    branches = [getattr(layer, "branches", {}) for layer in layers.values()]
    parallel = all(isinstance(layer, ParallelCrossAttention) for layer in layers.values())
    there = parallel and all(branch in own for own in branches)
    if not isinstance(image_proj, Resampler) or not there:
        raise WeightsError(
            f"the model has no resampler with a parallel attention branch {branch!r}: attach the "
            "method instantid before its weights"
        )
    slots = module_slots(image_proj, IMAGE_PROJ)
    for i, (name, layer) in enumerate(processors(model.unet).items()):
        if _is_cross(name):
            for short in ("to_k", "to_v"):
                kernel = getattr(layer.branches[branch], short).kernel  # type: ignore[attr-defined]
                slots[f"{ADAPTER}{i}.{short}_ip.weight"] = Slot(("kernel",), kernel)
    return slots


def _is_cross(name: str) -> bool:
    return name.endswith(".attn2")
