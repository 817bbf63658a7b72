"""Reads and writes PhotoMaker's files, v1 and v2: the ID encoder and the LoRA of a PhotoMaker.

The two versions differ in the ID encoder: v2 adds ``qformer_perceiver``
(models/encoders/photomaker_v2.py). Two containers hold the same tensors. ``.bin`` is a torch pickle
of two dictionaries, ``id_encoder`` and ``lora_weights`` (it needs the convert extra);
``.safetensors`` has one list of names with those two as prefixes, and needs no PyTorch. The LoRA's
keys are those of diffusers' attention processors of that time:
``unet.<block>.attn1.processor.to_q_lora.down.weight``. They have no alpha, so their scale is 1.
"""

import os
import re
from typing import Any

from jax.typing import DTypeLike

from persongen_jax.models.encoders.clip import CLIPVisionModel, complete_config
from persongen_jax.models.encoders.photomaker_v2 import HEAD_DIM, PhotoMakerV2IDEncoder
from persongen_jax.models.layers import UnusedRngs
from persongen_jax.models.lora import LoRA, loras
from persongen_jax.parallel.sharding import Shardings
from persongen_jax.weights.errors import (
    BadConfig,
    KeyMismatch,
    UnsupportedAdapter,
    WeightsError,
)
from persongen_jax.weights.files.directory import open_file
from persongen_jax.weights.files.source import (
    OpenedFile,
    Renaming,
    TensorSource,
    closed_on_error,
    subsource,
)
from persongen_jax.weights.keys import normalise_clip_vision
from persongen_jax.weights.loader import load_module, parameter_leaves
from persongen_jax.weights.recognition.layout import unwrapped
from persongen_jax.weights.slots import (
    Slot,
    fill_slots,
    lora_slots,
    module_slots,
    only_scale,
    processors,
    write_slots,
)

ENCODER, LORA = "id_encoder.", "lora_weights."
# In the metadata of .safetensors: the image tower's heads, and the width of the perceiver's.
HEADS, PERCEIVER = "num_attention_heads", "perceiver_head_dim"
PARTS = (ENCODER, LORA)  # in the order that the official loader requires

# The official classes register their parts in this order, by version.
_ENCODER_PARTS = {
    1: ("vision_model", "visual_projection", "visual_projection_2", "fuse_module"),
    2: (
        *("vision_model", "visual_projection", "fuse_module", "visual_projection_2"),
        "qformer_perceiver",
    ),
}
_V2_PART = f"{ENCODER}qformer_perceiver."
_PROJECTIONS = ("to_q", "to_k", "to_v", "to_out")

# CLIP saved 0, 1, 2, … as a tensor before it became a non-persistent buffer.
_POSITION_IDS = f"{ENCODER}vision_model.embeddings.position_ids"

# Other files that are easily mistaken for this one: a key that only they have, and what they are.
_OTHER_FILES = (
    (r"id_adapter", "PuLID"),
    (r"image_proj\.|ip_adapter\.", "an IP-Adapter (or InstantID's, which has the same keys)"),
    (r"(vision_model|visual_projection|fuse_module)\.", "an ID encoder without its LoRA"),
    (r"(unet|text_encoder|lora_(unet|te\d?))[._].*(lora|alpha)", "a plain LoRA"),
    (r"(model\.diffusion_model|first_stage_model)\.", "a whole Stable Diffusion checkpoint"),
)


class PhotoMakerFile(OpenedFile):
    """A PhotoMaker file, open for reading; a context manager.

    Attributes:
        version: 1 or 2.
        tensors: all tensors, with the prefixes ``id_encoder.`` and ``lora_weights.``
        id_encoder: those of the ID encoder, named as in the file without ``id_encoder.``
        lora_weights: likewise, "unet.….processor.to_q_lora.down.weight".
        rank: of the LoRA.
        sizes: of version 2: arguments of PhotoMakerV2IDEncoder.
    """

    def __init__(self, source: TensorSource):
        super().__init__(source)
        _check_kind(source)
        self.version = 2 if any(key.startswith(_V2_PART) for key in source.keys()) else 1
        self.id_encoder = subsource(source, ENCODER)
        self.lora_weights = subsource(source, LORA)
        self.rank = _common_rank(self.lora_weights)
        self.sizes = _perceiver_sizes(self.id_encoder) if self.version == 2 else {}


def read_photomaker(path: str | os.PathLike) -> PhotoMakerFile:
    """Open ``photomaker-v1.bin``, ``-v2.bin``, or a ``.safetensors`` file with the same content.

    Raises:
        MissingFile: there is none.
        MissingDependency: a ``.bin``, and no PyTorch.
        UnsupportedAdapter: another kind of file, which is named, or LoRA layers of several ranks.
        WeightsError: any other fault of the file.
    """
    with closed_on_error(unwrapped(open_file(path))) as file:
        renaming = Renaming(file)
        for key in file.keys():
            if key == _POSITION_IDS:
                renaming.ignore(key)
            else:
                renaming.add(key, key)
        return PhotoMakerFile(renaming.source())


def _check_kind(source):
    """UnsupportedAdapter unless the names are those of the two parts and nothing else."""
    keys = source.keys()
    for pattern, kind in _OTHER_FILES:
        if any(re.match(pattern, key) for key in keys):
            raise UnsupportedAdapter(
                f"{source.describe()}: is {kind}, not PhotoMaker. Give photomaker-v1.bin, from "
                "https://huggingface.co/TencentARC/PhotoMaker, or a file of its layout."
            )
    strange = [key for key in keys if not key.startswith(PARTS)]
    absent = [part + "*" for part in PARTS if not any(key.startswith(part) for key in keys)]
    if strange or absent:
        raise KeyMismatch(source.describe(), absent, strange, remedy="It is not a PhotoMaker file.")


def _common_rank(lora_weights) -> int:
    shapes = {key: lora_weights.info(key)[1] for key in lora_weights.keys()}
    ranks = {shape[0] for key, shape in shapes.items() if key.endswith("down.weight") and shape}
    if len(ranks) != 1:
        raise UnsupportedAdapter(
            f"{lora_weights.describe()}: LoRA layers of ranks {sorted(ranks)}; PhotoMaker has one "
            "rank throughout. Fetch the file again."
        )
    return ranks.pop()


def _perceiver_sizes(id_encoder) -> dict[str, int]:
    """Those that the file shows; its other tensors are checked when it is loaded."""
    layer, first = (
        r"qformer_perceiver\.perceiver_resampler\.layers\.(\d+)\.",
        "qformer_perceiver.token_proj.0.weight",
    )
    numbers = {match[1] for key in id_encoder.keys() if (match := re.match(layer, key))}
    sizes = {
        "num_layers": len(numbers),
        "head_dim": int(id_encoder.metadata.get(PERCEIVER, HEAD_DIM)),
    }
    shape: tuple[int, ...] = id_encoder.info(first)[1] if first in id_encoder else ()
    if len(shape) == 2:
        sizes |= {"hidden_features": shape[0], "id_features": shape[1]}
    return sizes


# ---- Into a model and out of it ----------------------------------------------------------------


def load_photomaker_into(model: Any, path: str | os.PathLike) -> None:
    """Fill a model that has the method attached from a PhotoMaker file, in place.

    Fills the ID encoder's leaves (including CLIP's image tower) and the LoRA on every attention
    layer; each is cast to the leaf's dtype and placed on its devices. A LoRA of the file has scale
    1: in a model with another alpha / rank, ``up`` is scaled to the same effect.

    Args:
        model: StableDiffusionXL with ``id_encoder`` and a LoRA (any method built on PhotoMaker's).
        path: the file, see :func:`read_photomaker`; its version must be that of the ID encoder.

    Raises:
        UnsupportedAdapter: a file of the other version.
        WeightsError: the ranks differ, or the method is not attached.
        KeyMismatch: a tensor missing, unexpected or misshapen; all are listed.
    """
    with read_photomaker(path) as file:
        _check_version(file, _encoder_version(model))
        slots = _slots(model)
        ranks = {slot.leaf.shape[-1] for key, slot in slots.items() if key.endswith("down.weight")}
        if ranks != {file.rank}:
            raise WeightsError(
                f"{file.describe()}: its LoRA has rank {file.rank}, the model's rank "
                f"{', '.join(map(str, sorted(ranks)))}. Set the config's rank={file.rank}."
            )
        fill_slots(slots, file.tensors)


def _check_version(file, version: int):
    if file.version != version:
        raise UnsupportedAdapter(
            f"{file.describe()}: is PhotoMaker v{file.version}, and the model's ID encoder is "
            f"v{version}'s, another network. Give photomaker-v{version}.bin, or a file of its "
            "layout."
        )


def save_photomaker(model: Any, path: str | os.PathLike) -> None:
    """Write a model's ID encoder and LoRA as a PhotoMaker file of the ID encoder's version.

    Tensors keep their stored dtype. ``up`` is multiplied by the model's alpha / rank, so that the
    implied scale of 1 is right.

    Args:
        model: as for :func:`load_photomaker_into`.
        path: "….safetensors", or "….bin" in PyTorch's format (needs the convert extra), written
            atomically.

    Raises:
        WeightsError: another extension, the method is not attached, or LoRAs that the format has no
            place for.
        MissingDependency: ``.bin`` without PyTorch.
    """
    slots = _slots(model)
    _check_nothing_is_lost(model)
    notes = {HEADS: str(model.id_encoder.vision_model.config[HEADS])}
    if _encoder_version(model) == 2:
        resampler = model.id_encoder.qformer_perceiver.perceiver_resampler
        attend = resampler.layers[0][0]
        notes[PERCEIVER] = str(attend.to_q.kernel.shape[1] // attend.heads)
    write_slots(path, slots, notes)


def _slots(model) -> dict[str, Slot]:
    """Every leaf that the format holds by the file's key, in the file's order.

    Parts of a method that PhotoMaker lacks, in the ID encoder or as a LoRA elsewhere, have no slot.
    """
    order = _ENCODER_PARTS[_encoder_version(model)]
    slots = module_slots(model.id_encoder, ENCODER, order)
    adapters = _attention_loras(model.unet)
    if not adapters:
        raise WeightsError("the UNet carries no LoRA: attach a method (photomaker) first")
    for name, lora in adapters.items():
        slots.update(lora_slots(LORA + name, lora, only_scale(lora, name)))
    return slots


def _encoder_version(model) -> int:
    encoder = getattr(model, "id_encoder", None)
    if encoder is None:
        raise WeightsError(
            "the model has no ID encoder: attach a method (photomaker) before its weights"
        )
    return 2 if isinstance(encoder, PhotoMakerV2IDEncoder) else 1


def _attention_loras(unet) -> dict[str, LoRA]:
    """ "unet.<block>.attn1.processor.to_q" to each layer's LoRA, in diffusers' order."""
    found = {}
    for name, layer in processors(unet).items():
        for projection in _PROJECTIONS:
            linear = getattr(layer, projection)
            linear = linear[0] if projection == "to_out" else linear
            if linear.lora is not None:
                found[f"unet.{name}.processor.{projection}"] = linear.lora
    return found


def _check_nothing_is_lost(model):
    """WeightsError if the model has trained parts that the format has no place for."""
    known = {id(lora) for lora in _attention_loras(model.unet).values()}
    for path, lora in loras(model.unet).items():
        if id(lora) not in known:
            raise WeightsError(
                f"unet.{'.'.join(map(str, path))} carries a LoRA, which PhotoMaker's format has no "
                "place for: it holds those of the base attention layers. Unload other LoRAs first."
            )
    order = _ENCODER_PARTS[_encoder_version(model)]
    strange = sorted({str(path[0]) for path in parameter_leaves(model.id_encoder)} - set(order))
    if strange:
        raise WeightsError(
            f"id_encoder.{strange[0]}: PhotoMaker's format has no place for it. Keep the training "
            "run of this method."
        )


# ---- The image tower alone ----------------------------------------------------------------


def load_photomaker_tower(
    path: str | os.PathLike,
    *,
    dtype: DTypeLike,
    param_dtype: DTypeLike | None = None,
    shardings: Shardings | None = None,
) -> CLIPVisionModel:
    """CLIP's image tower from a PhotoMaker file, without a projection.

    The file has no config: sizes follow from the shapes, the activation is quick_gelu and heads are
    64 wide, as in every CLIP of OpenAI's, unless the metadata give their number.

    Raises:
        BadConfig: the shapes are not those of such a tower.
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

    Shapes do not show the number of ``heads``; without it they are assumed to be 64 wide.
    """
    sizes, positions = _vision_sizes(source)
    width = sizes["hidden_size"]
    side = round((positions - 1) ** 0.5)
    if side**2 != positions - 1 or width % (int(heads) if heads else 64):
        raise BadConfig(
            f"{source.describe()}: {positions} positions of width {width} are not those of one of "
            "OpenAI's CLIP towers. Put the tower's own directory next to the base (image_encoder)."
        )
    return {
        **sizes,
        "num_attention_heads": int(heads) if heads else width // 64,
        "image_size": side * sizes["patch_size"],
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
    }


def has_tower_like(file: PhotoMakerFile, config: dict) -> bool:
    """Whether the file's image tower has the sizes of a transformers ``config.json``."""
    tower = normalise_clip_vision(subsource(file.id_encoder, "vision_model."))
    sizes, positions = _vision_sizes(tower)
    config = complete_config(config, "vision")
    patches = (config["image_size"] // config["patch_size"]) ** 2
    return positions == 1 + patches and all(config[key] == size for key, size in sizes.items())


def _vision_sizes(source) -> tuple[dict, int]:
    """The config values that follow from the shapes, and the number of positions."""
    width, channels, patch, _ = source.info("embeddings.patch_embedding.weight")[1]
    positions, _ = source.info("embeddings.position_embedding.weight")[1]
    inner, _ = source.info("encoder.layers.0.mlp.fc1.weight")[1]
    layers = {int(m[1]) for k in source.keys() if (m := re.match(r"encoder\.layers\.(\d+)\.", k))}
    sizes = {
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": len(layers),
        "num_channels": channels,
        "patch_size": patch,
    }
    return sizes, positions


__all__ = [
    "PhotoMakerFile",
    "has_tower_like",
    "infer_vision_config",
    "load_photomaker_into",
    "load_photomaker_tower",
    "read_photomaker",
    "save_photomaker",
]
