"""PhotoMaker v1's files: the ID encoder and the LoRA of a trained PhotoMaker, read and written.

Two containers hold the same tensors. ``.bin`` is a torch pickle of two dictionaries, ``id_encoder``
and ``lora_weights`` (it needs the convert extra); ``.safetensors`` has one list of names with those
two words in front, and needs no PyTorch. The LoRA's keys are those of diffusers' attention
processors of that time: ``unet.<block>.attn1.processor.to_q_lora.down.weight``. They come without
alpha, so their scale is 1.
"""

import os
import re
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
from flax import nnx

from persongen_jax.models.clip import CLIPVisionModel
from persongen_jax.models.layers import UnusedRngs
from persongen_jax.models.lora import lora_layers
from persongen_jax.weights.directory import open_file
from persongen_jax.weights.errors import (
    BadConfig,
    KeyMismatch,
    MissingDependency,
    UnsupportedAdapter,
    WeightsError,
)
from persongen_jax.weights.keys import normalise_clip_vision
from persongen_jax.weights.loader import (
    from_torch_layout,
    load_module,
    parameter_leaves,
    to_torch_layout,
    to_torch_shape,
    torch_key,
)
from persongen_jax.weights.safetensors_file import write_safetensors
from persongen_jax.weights.source import Renaming, TensorSource, subsource

ENCODER, LORA = "id_encoder.", "lora_weights."
HEADS = "num_attention_heads"  # of the image tower, in the metadata of .safetensors
PARTS = (ENCODER, LORA)  # in the order that the official loader insists on

# The official class registers its parts in this order.
_ENCODER_PARTS = ("vision_model", "visual_projection", "visual_projection_2", "fuse_module")
# diffusers lists attention processors block by block, in the order that the UNet registers them.
_BLOCKS = ("down_blocks", "up_blocks", "mid_block")
_PROJECTIONS = ("to_q", "to_k", "to_v", "to_out")

# CLIP saved 0, 1, 2, … as a tensor, before it was made a buffer that is not saved.
_POSITION_IDS = f"{ENCODER}vision_model.embeddings.position_ids"

# Other files that people have beside this one: a key that only they have, and what they are.
_OTHER_FILES = (
    (r"id_encoder\.qformer_perceiver\.", "PhotoMaker v2, whose ID encoder is another network"),
    (r"id_adapter", "PuLID"),
    (r"image_proj\.|ip_adapter\.", "an IP-Adapter (or InstantID's, which has the same keys)"),
    (r"(vision_model|visual_projection|fuse_module)\.", "an ID encoder without its LoRA"),
    (r"(unet|text_encoder|lora_(unet|te\d?))[._].*(lora|alpha)", "a plain LoRA"),
    (r"(model\.diffusion_model|first_stage_model)\.", "a whole Stable Diffusion checkpoint"),
)


class PhotoMakerFile:
    """A PhotoMaker v1 file, open for reading; a context manager.

    Attributes:
        tensors: all of them, with ``id_encoder.`` and ``lora_weights.`` in front.
        id_encoder: those of the ID encoder, named as in the file without ``id_encoder.``
        lora_weights: likewise, "unet.….processor.to_q_lora.down.weight".
        rank: of the LoRA.
    """

    def __init__(self, source: TensorSource):
        self.tensors = source
        _check_kind(source)
        self.id_encoder = subsource(source, ENCODER)
        self.lora_weights = subsource(source, LORA)
        self.rank = _common_rank(self.lora_weights)

    def describe(self) -> str:
        return self.tensors.describe()

    def close(self):
        self.tensors.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def read_photomaker(path) -> PhotoMakerFile:
    """Open ``photomaker-v1.bin``, or a ``.safetensors`` file with the same content.

    Raises:
        MissingFile: there is none.
        MissingDependency: a ``.bin``, and no PyTorch.
        UnsupportedAdapter: another kind of file, which is named, or LoRA layers of several ranks.
        WeightsError: any other fault of the file.
    """
    file = open_file(path)
    try:
        renaming = Renaming(file)
        for key in file.keys():
            if key == _POSITION_IDS:
                renaming.ignore(key)
            else:
                renaming.add(key, key)
        return PhotoMakerFile(renaming.source())
    except BaseException:
        file.close()
        raise


def _check_kind(source):
    """UnsupportedAdapter unless the names are those of the two parts and nothing else."""
    keys = source.keys()
    for pattern, kind in _OTHER_FILES:
        if any(re.match(pattern, key) for key in keys):
            raise UnsupportedAdapter(
                f"{source.describe()}: is {kind}, not PhotoMaker v1. Give photomaker-v1.bin, from "
                "https://huggingface.co/TencentARC/PhotoMaker, or a file of its layout."
            )
    strange = [key for key in keys if not key.startswith(PARTS)]
    absent = [part + "*" for part in PARTS if not any(key.startswith(part) for key in keys)]
    if strange or absent:
        raise KeyMismatch(source.describe(), absent, strange, remedy="It is no PhotoMaker v1 file.")


def _common_rank(lora_weights) -> int:
    shapes = {key: lora_weights.info(key)[1] for key in lora_weights.keys()}
    ranks = {shape[0] for key, shape in shapes.items() if key.endswith("down.weight") and shape}
    if len(ranks) != 1:
        raise UnsupportedAdapter(
            f"{lora_weights.describe()}: LoRA layers of ranks {sorted(ranks)}; PhotoMaker has one "
            "rank throughout. Fetch the file again."
        )
    return ranks.pop()


# ---- Into a model and out of it ----------------------------------------------------------------


def load_photomaker_into(model, path):
    """Fill a model, with the method attached, from a PhotoMaker v1 file, in place.

    The ID encoder's leaves (CLIP's image tower among them) and the LoRA on every attention layer;
    each is cast to the leaf's dtype and goes to the leaf's devices. A LoRA of the file acts with
    scale 1: in a model whose alpha / rank is another, ``up`` is scaled to the same effect.

    Args:
        model: StableDiffusionXL with ``id_encoder`` and a LoRA (any method built on PhotoMaker's).
        path: the file, see :func:`read_photomaker`.

    Raises:
        WeightsError: the ranks differ, or the method is not attached.
        KeyMismatch: a tensor missing, unexpected or misshapen; all are listed.
    """
    with read_photomaker(path) as file:
        slots = _slots(model)
        ranks = {slot.leaf.shape[-1] for key, slot in slots.items() if key.endswith("down.weight")}
        if ranks != {file.rank}:
            raise WeightsError(
                f"{file.describe()}: its LoRA has rank {file.rank}, the model's rank "
                f"{', '.join(map(str, sorted(ranks)))}. Set the config's rank={file.rank}."
            )
        _check(slots, file.tensors)
        for key, slot in slots.items():
            slot.set(file.tensors.read(key))


def save_photomaker(model, path):
    """Write a model's ID encoder and LoRA as a PhotoMaker v1 file.

    Tensors keep the dtype they are stored in. ``up`` is multiplied by the model's alpha / rank,
    so that scale 1, which the format implies, is right.

    Args:
        model: as :func:`load_photomaker_into`'s.
        path: "….safetensors", or "….bin" in PyTorch's format (needs the convert extra). The file
            appears whole or not at all.

    Raises:
        WeightsError: another ending, the method is not attached, or LoRAs that the format has no
            place for.
        MissingDependency: ``.bin`` without PyTorch.
    """
    path = Path(path)
    slots = _slots(model)
    if path.suffix == ".safetensors":
        entries = [(key, slot.shape, slot.leaf.dtype, slot.get) for key, slot in slots.items()]
        write_safetensors(path, entries, {"format": "pt", HEADS: _heads(model)})
    elif path.suffix == ".bin":
        _write_pickle(path, slots)
    else:
        raise WeightsError(f"{path}: the ending has to be .safetensors or .bin")


def _heads(model) -> str:
    return str(model.id_encoder.vision_model.config["num_attention_heads"])


class _Slot:
    """One leaf of the model and what the file has for it: other layout, ``factor`` times it."""

    def __init__(self, path: tuple, variable, factor: float = 1.0):
        self.path, self.variable, self.factor = path, variable, factor
        self.leaf = variable.get_value()
        self.shape = to_torch_shape(path, self.leaf.shape)

    def set(self, array: np.ndarray):
        array = from_torch_layout(self.path, array)
        if self.factor != 1:
            array = array.astype(np.float32) / np.float32(self.factor)
        array = np.ascontiguousarray(array.astype(self.leaf.dtype))
        self.variable.set_value(jax.device_put(array, self.leaf.sharding))

    def get(self) -> np.ndarray:
        array = np.asarray(jax.device_get(self.leaf))
        if self.factor != 1:
            array = (array.astype(np.float32) * np.float32(self.factor)).astype(array.dtype)
        return np.ascontiguousarray(to_torch_layout(self.path, array))


def _slots(model) -> dict[str, _Slot]:
    """Every leaf that the format holds by the file's key, in the file's order."""
    if getattr(model, "id_encoder", None) is None:
        raise WeightsError(
            "the model has no ID encoder: attach a method (photomaker) before its weights"
        )
    slots = {}
    paths = parameter_leaves(model.id_encoder)
    for path in sorted(paths, key=lambda path: _ENCODER_PARTS.index(path[0])):
        slots[ENCODER + torch_key(path)] = _Slot(path, _variable_at(model.id_encoder, path))
    for name, layer in _attention_layers(model.unet).items():
        # Both halves lie in the file as kernels do: the other way round.
        factor = _one_scale(layer.lora, name)
        slots[f"{LORA}{name}_lora.down.weight"] = _Slot(("kernel",), layer.lora.down)
        slots[f"{LORA}{name}_lora.up.weight"] = _Slot(("kernel",), layer.lora.up, factor)
    return slots


def _variable_at(module, path):
    for part in path:
        module = module[part] if isinstance(part, int) else getattr(module, part)
    return module


def _attention_layers(unet) -> dict[str, nnx.Module]:
    """ "unet.<block>.attn1.processor.to_q" to the layer, in the order of diffusers' processors."""
    found = []
    for path, layer in lora_layers(unet).items():
        inner = path[:-1] if path[-2:] == ("to_out", 0) else path
        *attention, projection = inner
        if attention[-1] not in ("attn1", "attn2") or projection not in _PROJECTIONS:
            raise WeightsError(
                f"unet.{'.'.join(map(str, path))} carries a LoRA, which PhotoMaker's format has no "
                "place for: it holds those of the base attention layers. Unload other LoRAs first."
            )
        order = _BLOCKS.index(path[0]), attention[1:], _PROJECTIONS.index(projection)
        name = ".".join(map(str, ["unet", *attention, "processor", projection]))
        found.append((order, name, layer))
    if not found:
        raise WeightsError("the UNet carries no LoRA: attach a method (photomaker) first")
    return {name: layer for _, name, layer in sorted(found, key=lambda entry: entry[0])}


def _one_scale(lora, name) -> float:
    scales = np.unique(np.asarray(lora.scale.get_value()))
    if len(scales) != 1 or scales[0] == 0:
        raise WeightsError(
            f"{name}: a LoRA of scale {scales.tolist()}. The format holds one LoRA, with a "
            "scale that is not 0; unload all others."
        )
    return float(scales[0])


def _check(slots, source):
    found = set(source.keys())
    misshapen = {}
    for key in sorted(found & slots.keys()):
        shape = tuple(source.info(key)[1])
        if shape != slots[key].shape:
            misshapen[key] = (shape, slots[key].shape)
    missing, unexpected = sorted(slots.keys() - found), sorted(found - slots.keys())
    if missing or unexpected or misshapen:
        raise KeyMismatch(source.describe(), missing, unexpected, misshapen)


def _write_pickle(path, slots):
    try:
        import torch
    except ImportError as error:
        raise MissingDependency(
            f"{path}: .bin files are written by PyTorch, which is not installed. Install "
            "persongen_jax[convert], or write a .safetensors file."
        ) from error

    def tensor(array):
        if array.dtype == ml_dtypes.bfloat16:
            return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
        return torch.from_numpy(array)

    content = {part.rstrip("."): {} for part in PARTS}
    for key, slot in slots.items():
        part, _, name = key.partition(".")
        # A copy: what JAX hands out may be read-only, which torch warns of.
        content[part][name] = tensor(np.array(slot.get()))
    temporary = path.with_name(path.name + ".part")
    torch.save(content, temporary)
    os.replace(temporary, path)


# ---- The image tower on its own ----------------------------------------------------------------


def load_photomaker_tower(path, *, dtype, param_dtype=None, shardings=None) -> CLIPVisionModel:
    """CLIP's image tower out of a PhotoMaker v1 file, without a projection.

    The file has no config: sizes are read off the shapes, the activation is quick_gelu and heads
    are 64 wide, as in every CLIP of OpenAI's, unless the metadata say how many there are.

    Raises:
        BadConfig: the shapes are no such tower's.
    """
    with read_photomaker(path) as file:
        source = normalise_clip_vision(subsource(file.id_encoder, "vision_model."))
        config = infer_vision_config(source, file.id_encoder.metadata.get(HEADS))
        kw = {"dtype": dtype, "param_dtype": dtype if param_dtype is None else param_dtype}
        return load_module(
            lambda: CLIPVisionModel(config, with_projection=False, **kw, rngs=UnusedRngs()),
            source,
            shardings=shardings,
        )


def infer_vision_config(source: TensorSource, heads: str | None = None) -> dict:
    """A CLIP image tower's config from the shapes of its tensors, named without a prefix.

    Shapes do not tell the number of ``heads``; without it they are taken to be 64 wide.
    """
    width, channels, patch, _ = source.info("embeddings.patch_embedding.weight")[1]
    positions, _ = source.info("embeddings.position_embedding.weight")[1]
    inner, _ = source.info("encoder.layers.0.mlp.fc1.weight")[1]
    layers = {int(m[1]) for k in source.keys() if (m := re.match(r"encoder\.layers\.(\d+)\.", k))}
    side = round((positions - 1) ** 0.5)
    if side**2 != positions - 1 or width % (int(heads) if heads else 64):
        raise BadConfig(
            f"{source.describe()}: {positions} positions of width {width} are not those of one of "
            "OpenAI's CLIP towers. Put the tower's own directory beside the base (image_encoder)."
        )
    return {
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": len(layers),
        "num_attention_heads": int(heads) if heads else width // 64,
        "num_channels": channels,
        "image_size": side * patch,
        "patch_size": patch,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
    }


__all__ = [
    "PhotoMakerFile",
    "infer_vision_config",
    "load_photomaker_into",
    "load_photomaker_tower",
    "read_photomaker",
    "save_photomaker",
]
