"""IP-Adapter's files for SDXL (Ye et al., arXiv 2308.06721): base, plus, FaceID, FaceID Plus.

``image_proj.*`` turns an image into tokens (models/encoders/resampler.py);
``ip_adapter.{i}.to_k_ip.weight`` and ``.to_v_ip.weight`` are the keys and values of the attention
branch that reads them. i numbers the UNet's attention layers as diffusers does (``processors``), so
only odd numbers occur. A FaceID file also has a LoRA on every attention layer,
``{i}.to_{q,k,v,out}_lora.{down,up}``, without alpha: its scale is 1. ``.bin`` is a torch pickle of
two dictionaries (it needs the convert extra), ``.safetensors`` has one list of names.
ip_adapter_state.py reads the trainer's files.
"""

import os
import re
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from persongen_jax.models.branches import ParallelCrossAttention
from persongen_jax.models.layers import LayerOptions, Linear
from persongen_jax.models.lora import lora_layers
from persongen_jax.weights.errors import KeyMismatch, UnsupportedAdapter, WeightsError
from persongen_jax.weights.files.directory import open_file
from persongen_jax.weights.files.source import OpenedFile, TensorSource, closed_on_error, subsource
from persongen_jax.weights.formats.identity.ip_adapter_variants import (
    HEAD_DIM,
    IMAGE_PROJ,
    MARKS,
    PROJECTIONS,
    projection_sizes,
    variants_of,
)
from persongen_jax.weights.recognition.ip_adapter_state import is_training_state, published_names
from persongen_jax.weights.recognition.kinds import classify
from persongen_jax.weights.recognition.layout import unwrapped
from persongen_jax.weights.recognition.pulid import pulid_version
from persongen_jax.weights.saver import save_module
from persongen_jax.weights.slots import (
    Computed,
    Slot,
    fill_slots,
    lora_slots,
    module_slots,
    only_scale,
    processors,
    write_slots,
)

ADAPTER = "ip_adapter."
PUBLISHED_TOKENS = 4  # of a base file; diffusers accepts no other number

_OTHER_FILES = (
    (r"(id_encoder|lora_weights)\.", "a PhotoMaker file"),
    (r"id_adapter", "PuLID"),
    (r"image_proj\.proj\.3\.", "IP-Adapter full face, which is not supported"),
    (r"(unet|text_encoder|lora_(unet|te\d?))[._].*(lora|alpha)", "a plain LoRA"),
    (r"(model\.diffusion_model|first_stage_model)\.", "a whole Stable Diffusion checkpoint"),
)
_NUMBERED = re.compile(r"ip_adapter\.(\d+)\.to_(?:[kv]_ip|(?:q|k|v|out)_lora\.(?:down|up))\.weight")

# (cross-attention layers, width of their input) of the UNets that have adapters.
_UNETS = {
    (16, 768): "Stable Diffusion 1.5",
    (16, 1024): "Stable Diffusion 2",
    (70, 2048): "SDXL",
}


class IPAdapterFile(OpenedFile):
    """An IP-Adapter file, open for reading; a context manager.

    Attributes:
        tensors: all tensors of the file.
        kind: "base" (ViT-H's and ViT-bigG's alike), "plus" (Plus-Face too), "faceid" (Portrait
            too: 16 tokens and no LoRA) or "faceid-plus" (version 1 and 2 alike).
        sizes: arguments of the kind's class in ``PROJECTIONS``; ``in_features`` is the width of its
            input, ``num_tokens`` the number of tokens per image.
        width: of the tokens.
        layers: number of cross-attention layers that it has keys and values for.
        rank: of the LoRA, or None.
    """

    def __init__(self, source: TensorSource):
        super().__init__(source)
        self.kind = _find_kind(source)
        self.sizes = projection_sizes(self.kind, subsource(source, IMAGE_PROJ))
        names = [key for key in source.keys() if key.endswith(".to_k_ip.weight")]
        self.layers = len(names)
        widths = {source.info(key)[1][-1] for key in names}
        if len(widths) != 1:
            raise UnsupportedAdapter(
                f"{self.describe()}: its keys (to_k_ip) read tokens of widths {sorted(widths)}; "
                "one is needed. Fetch the file again."
            )
        self.width = widths.pop()
        self.rank = _common_rank(source)


def read_ip_adapter(path: str | os.PathLike) -> IPAdapterFile:
    """Open an IP-Adapter file, ``.bin`` or ``.safetensors``.

    Raises:
        MissingFile: there is none.
        MissingDependency: a ``.bin``, and no PyTorch.
        UnsupportedAdapter: another kind of file, or an unsupported variant, with its name.
        KeyMismatch: names that no IP-Adapter has.
    """
    with closed_on_error(unwrapped(open_file(path))) as file:
        return IPAdapterFile(published_names(file))


def is_ip_adapter(path: str | os.PathLike) -> bool:
    """Whether a weight file has an IP-Adapter's names, of any variant; PuLID may have them too."""
    with unwrapped(open_file(path)) as file:
        keys = file.keys()
        names = any(key.startswith((IMAGE_PROJ, ADAPTER)) for key in keys)
        return (names or is_training_state(file)) and not pulid_version(keys)


def _find_kind(source) -> str:
    keys = source.keys()
    if classify(source)[0] == "instantid":
        raise UnsupportedAdapter(
            f"{source.describe()}: is InstantID's adapter, which reads face embeddings; the method "
            "instantid reads it."
        )
    for pattern, kind in _OTHER_FILES:
        if any(re.match(pattern, key) for key in keys):
            raise UnsupportedAdapter(
                f"{source.describe()}: is {kind}; a base, plus or FaceID IP-Adapter is needed, "
                "such as ip-adapter_sdxl.safetensors from https://huggingface.co/h94/IP-Adapter."
            )
    strange = [key for key in keys if not key.startswith(IMAGE_PROJ) and not _NUMBERED.match(key)]
    kinds = variants_of(keys)
    absent = [] if len(kinds) == 1 else list(MARKS.values())
    if not any(key.endswith(".to_k_ip.weight") for key in keys):
        absent.append(f"{ADAPTER}*.to_k_ip.weight")
    if strange or absent:
        remedy = "It is not an IP-Adapter file of a known kind."
        raise KeyMismatch(source.describe(), absent, strange, remedy=remedy)
    return kinds[0]


def _common_rank(source) -> int | None:
    keys = [key for key in source.keys() if key.endswith("_lora.down.weight")]
    ranks = {source.info(key)[1][0] for key in keys}
    if len(ranks) > 1:
        raise UnsupportedAdapter(
            f"{source.describe()}: LoRA layers of ranks {sorted(ranks)}; an IP-Adapter has one "
            "rank throughout. Fetch the file again."
        )
    return ranks.pop() if ranks else None


# ---- Into a model and out of it ----------------------------------------------------------------


def load_ip_adapter_into(model: Any, path: str | os.PathLike, branch: str = "identity") -> None:
    """Fill a model that has the method attached from an IP-Adapter file, in place.

    Fills ``image_proj``, the branch's keys and values, and the LoRA if there is one; each is cast
    to the leaf's dtype and placed on its devices. The file's LoRA has scale 1: in a model with
    another alpha / rank, ``up`` is scaled to the same effect.

    Args:
        model: has ``unet`` with the branch, and ``image_proj``, one of ``PROJECTIONS``.
        path: the file, see :func:`read_ip_adapter`.
        branch: the stream's name.

    Raises:
        UnsupportedAdapter: another variant than the model's, or one for another UNet.
        WeightsError: the ranks differ, or the method is not attached.
        KeyMismatch: a tensor missing, unexpected or misshapen; all are listed.
    """
    with read_ip_adapter(path) as file:
        slots = module_slots(_image_proj(model), IMAGE_PROJ) | _branch_slots(model, branch)
        _check_variant(file, model, branch)
        fill_slots(slots, file.tensors)


def save_ip_adapter(model: Any, path: str | os.PathLike, branch: str = "identity") -> None:
    """Write a model's image projection and branch, and its LoRA, as an IP-Adapter file.

    Tensors keep their stored dtype. diffusers' ``load_ip_adapter`` opens the file if it has one of
    the published forms: 4 tokens for base and FaceID, 4 layers for plus.

    The method with one token per reference (``id_tokens``) is written as a base variant that makes
    the same token four times, which attention cannot distinguish from one. It reads CLIP's pooled
    embedding unchanged: :func:`save_image_encoder`'s folder goes with it. Without an image,
    diffusers sends zeros through the projection, which yields the bias of ``id_norm``, whereas here
    there is no token at all: guided images differ by the effect of that trained bias.

    Args:
        model: as for :func:`load_ip_adapter_into`; or one with ``id_tokens``.
        path: "….safetensors", or "….bin" (needs the convert extra), written atomically.

    Raises:
        WeightsError: another extension, the method is not attached, or it has parts that the format
            has no place for.
        MissingDependency: ``.bin`` without PyTorch.
    """
    if getattr(model, "image_proj", None) is None and hasattr(model, "id_tokens"):
        slots: Mapping[str, Slot | Computed] = _single_token_slots(model)
    else:
        slots = module_slots(_image_proj(model), IMAGE_PROJ)
    slots = {**slots, **_branch_slots(model, branch)}
    _check_loras(model.unet)
    write_slots(path, slots)


def save_image_encoder(model: Any, folder: str | os.PathLike) -> None:
    """Write the image tower that belongs to a file of single tokens, in transformers' format.

    Args:
        model: has ``id_encoder``; the folder's ``visual_projection`` is the identity, so that
            ``image_embeds`` is the pooled embedding.
    """
    tower = model.id_encoder.vision_model
    width = tower.config["hidden_size"]
    config = {
        **tower.config.to_dict(),
        "architectures": ["CLIPVisionModelWithProjection"],
        "model_type": "clip_vision_model",
        "projection_dim": width,
    }
    kw: LayerOptions = {"dtype": tower.dtype, "param_dtype": tower.dtype, "rngs": nnx.Rngs(0)}
    whole: Any = nnx.Module()
    whole.vision_model = tower
    whole.visual_projection = Linear(width, width, use_bias=False, **kw)
    whole.visual_projection.kernel.set_value(jnp.eye(width, dtype=tower.dtype))
    save_module(whole, folder, config, file_name="model.safetensors")


def _single_token_slots(model) -> dict[str, Computed]:
    """A base projection that makes ``id_tokens``' one token four times."""
    tokens, encoder = model.id_tokens, model.id_encoder
    if tokens.visual_projection_3 is not None:
        heads = [tokens.visual_projection_3]
    else:
        heads = [encoder.visual_projection, encoder.visual_projection_2]
    rows = np.concatenate([np.asarray(head.kernel.get_value()).T for head in heads])
    norm = {"weight": tokens.id_norm.scale, "bias": tokens.id_norm.bias}
    arrays = {
        "proj.weight": np.tile(rows, (PUBLISHED_TOKENS, 1)),
        "proj.bias": np.zeros(PUBLISHED_TOKENS * len(rows), rows.dtype),
        **{f"norm.{name}": np.asarray(leaf.get_value()) for name, leaf in norm.items()},
    }
    return {IMAGE_PROJ + name: Computed(array) for name, array in arrays.items()}


def _branch_slots(model, branch) -> dict[str, Slot]:
    """The numbered leaves by the file's keys, in the file's order."""
    slots = {}
    for i, (name, layer) in enumerate(processors(model.unet).items()):
        slots.update(_layer_loras(f"{ADAPTER}{i}.", name, layer))
        if name.endswith(".attn2"):
            if not isinstance(layer, ParallelCrossAttention) or branch not in layer.branches:
                raise WeightsError(
                    f"the UNet has no parallel attention branch {branch!r}, which is what an "
                    "IP-Adapter has: attach the method ip_adapter before its weights"
                )
            reader = layer.branches[branch]
            for short in ("to_k", "to_v"):
                kernel = getattr(reader, short).kernel
                slots[f"{ADAPTER}{i}.{short}_ip.weight"] = Slot(("kernel",), kernel)
    return slots


def _image_proj(model) -> nnx.Module:
    found = getattr(model, "image_proj", None)
    if found is None:
        raise WeightsError(
            "the model has no image_proj: attach the method ip_adapter before its weights"
        )
    return found


def _base_layers(layer) -> dict[str, Linear]:
    named = {short: getattr(layer, short) for short in ("to_q", "to_k", "to_v")}
    return {**named, "to_out": layer.to_out[0]}


def _layer_loras(prefix, name, layer) -> dict[str, Slot]:
    slots = {}
    for short, linear in _base_layers(layer).items():
        if linear.lora is not None:
            scale = only_scale(linear.lora, f"unet.{name}.{short}")
            slots.update(lora_slots(f"{prefix}{short}", linear.lora, scale))
    return slots


def _check_loras(unet):
    """WeightsError unless all base attention layers have a LoRA, or none has, and nothing else."""
    layers = [x for part in processors(unet).values() for x in _base_layers(part).values()]
    known = {id(layer) for layer in layers if layer.lora is not None}
    for path, layer in lora_layers(unet).items():
        if id(layer) not in known:
            raise WeightsError(
                f"unet.{'.'.join(map(str, path))} carries a LoRA, which IP-Adapter's format has no "
                "place for: it holds those of the base attention layers. Merge it first."
            )
    if known and len(known) != len(layers):
        raise WeightsError(
            f"{len(known)} of {len(layers)} attention layers carry a LoRA; IP-Adapter's format has "
            "one on each, or none at all."
        )


def _check_variant(file, model, branch):
    """UnsupportedAdapter or WeightsError if the file is for a model other than this."""
    image_proj = _image_proj(model)
    kind = next(name for name, cls in PROJECTIONS.items() if type(image_proj) is cls)
    if file.kind != kind:
        raise UnsupportedAdapter(
            f"{file.describe()}: is the {file.kind} variant of IP-Adapter, and the model's "
            f"image_proj the {kind} variant's. Set the config's image_proj={file.kind!r}, or give "
            f"a {kind} file."
        )
    readers = [x for name, x in processors(model.unet).items() if name.endswith(".attn2")]
    width = readers[0].branches[branch].to_k.kernel.shape[0]
    if (file.layers, file.width) != (len(readers), width):
        raise UnsupportedAdapter(
            f"{file.describe()}: is for {_unet_name(file.layers, file.width)}; this UNet is "
            f"{_unet_name(len(readers), width)}. Give an adapter that was made for this base."
        )
    ranks = {x.lora.down.shape[-1] for x in lora_layers(model.unet).values()} or {None}
    if ranks != {file.rank}:
        has = "no LoRA" if file.rank is None else f"a LoRA of rank {file.rank}"
        of_model = ", ".join(map(str, sorted(ranks - {None}))) or "none"
        raise WeightsError(
            f"{file.describe()}: has {has}, the model's ranks: {of_model}. Set the config's "
            f"image_lora_rank={file.rank or 0}."
        )


def _unet_name(layers, width) -> str:
    sizes = f"{layers} cross-attention layers that read tokens of width {width}"
    known = _UNETS.get((layers, width))
    return f"{known} ({sizes})" if known else f"a UNet of {sizes}"


__all__ = [
    "ADAPTER",
    "HEAD_DIM",
    "IMAGE_PROJ",
    "PROJECTIONS",
    "IPAdapterFile",
    "is_ip_adapter",
    "load_ip_adapter_into",
    "read_ip_adapter",
    "save_image_encoder",
    "save_ip_adapter",
]
