"""What InstantID's and PuLID's files have in common: the width of heads, and numbered layers."""

from pathlib import Path
from typing import Any

from persongen_jax.models.attention import MultiHeadAttention
from persongen_jax.models.encoders.resampler import PerceiverAttention
from persongen_jax.weights.errors import UnsupportedAdapter, WeightsError
from persongen_jax.weights.files.source import TensorSource
from persongen_jax.weights.slots import Slot, processors

HEAD_DIM = 64  # no tensor shows it, and the authors' code has no other
HEAD_DIM_NOTE = "head_dim"  # in the metadata of our own files, where it is another one


def read_head_dim(source: TensorSource, inner: int) -> int:
    """The width of a file's heads, ``inner`` together; UnsupportedAdapter if that cannot be."""
    said = source.metadata.get(HEAD_DIM_NOTE, str(HEAD_DIM))
    if not said.isdecimal() or int(said) == 0:
        raise UnsupportedAdapter(
            f"{source.describe()}: its metadata says {HEAD_DIM_NOTE}={said!r}; a whole number is "
            "needed"
        )
    if inner % int(said):
        raise UnsupportedAdapter(
            f"{source.describe()}: its attention is {inner} wide, which is no multiple of {said}, "
            "the width of its heads. A file of another width says so in its metadata, "
            f"{HEAD_DIM_NOTE!r}; a .bin cannot: give the .safetensors file."
        )
    return int(said)


def head_dim_notes(attention: PerceiverAttention, path: Any) -> dict[str, str]:
    """The metadata to write for an encoder's heads; WeightsError for a .bin that needs some."""
    head_dim = attention.to_q.kernel.shape[1] // attention.heads
    if head_dim == HEAD_DIM:
        return {}
    if Path(path).suffix == ".bin":
        raise WeightsError(
            f"{path}: the encoder's heads are {head_dim} wide and not {HEAD_DIM}, which a .bin "
            "cannot say; write a .safetensors file"
        )
    return {HEAD_DIM_NOTE: str(head_dim)}


def cross_layers(unet: Any) -> dict[int, MultiHeadAttention]:
    """The UNet's cross-attention layers by the numbers that files give them."""
    numbered = enumerate(processors(unet).items())
    return {i: layer for i, (name, layer) in numbered if name.endswith(".attn2")}


def branch_slots(unet: Any, branch: str, key: str) -> dict[str, Slot]:
    """The branch's kernels by ``key``, which has places for the number and for k or v."""
    slots = {}
    for i, layer in cross_layers(unet).items():
        reader = layer.branches[branch]  # type: ignore[attr-defined]
        for which in "kv":
            kernel = getattr(reader, f"to_{which}").kernel
            slots[key.format(i, which)] = Slot(("kernel",), kernel)
    return slots


def check_unet(file: Any, unet: Any) -> None:
    """UnsupportedAdapter unless the file, with ``layers`` and ``width``, is for such a UNet."""
    layers = list(cross_layers(unet).values())
    width = layers[0].to_k.kernel.shape[0]
    if (file.layers, file.width) != (len(layers), width):
        raise UnsupportedAdapter(
            f"{file.describe()}: has {file.layers} cross-attention layers that read tokens of "
            f"width {file.width}, this UNet {len(layers)} of width {width} (SDXL: 70 of 2048). "
            "Give a file that was made for this base."
        )
