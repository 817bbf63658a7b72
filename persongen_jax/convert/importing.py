"""Imports a public weight file: checks it against a base and writes it in our own format.

Pickles, ONNX and other names become safetensors, bit-equal: dtypes do not change. Only the base's
configs are opened, none of its weights.
"""

import functools
import shutil
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from flax import nnx

from persongen_jax.convert.identify import identify
from persongen_jax.convert.judges import import_judge
from persongen_jax.convert.pulid import import_pulid
from persongen_jax.models.encoders.clip import CLIPTextModel, CLIPVisionModel
from persongen_jax.models.encoders.dino import DinoViT
from persongen_jax.models.encoders.id_encoder import PhotoMakerIDEncoder
from persongen_jax.models.encoders.photomaker_v2 import PhotoMakerV2IDEncoder
from persongen_jax.models.faces.iresnet import IResNet
from persongen_jax.models.layers import UnusedRngs
from persongen_jax.models.sdxl.parts import COMPONENTS as ALL_COMPONENTS
from persongen_jax.models.sdxl.parts import build
from persongen_jax.models.sdxl.unet import UNet2DConditionModel
from persongen_jax.weights.errors import KeyMismatch, UnsupportedAdapter, WeightsError
from persongen_jax.weights.files.directory import open_file, read_config
from persongen_jax.weights.files.safetensors_file import write_safetensors
from persongen_jax.weights.files.source import TensorSource, subsource
from persongen_jax.weights.formats.adapters import check_adapters, module_paths
from persongen_jax.weights.formats.arcface import open_arcface
from persongen_jax.weights.formats.dino import open_dino
from persongen_jax.weights.formats.embeddings.reading import SDXL_WIDTHS, read_embeddings
from persongen_jax.weights.formats.embeddings.writing import write_embeddings
from persongen_jax.weights.formats.eva_clip import open_eva_clip
from persongen_jax.weights.formats.identity.instantid import read_instantid
from persongen_jax.weights.formats.ip_adapter import (
    ADAPTER,
    IMAGE_PROJ,
    PROJECTIONS,
    read_ip_adapter,
)
from persongen_jax.weights.formats.lora.reading import read_bundled_embeddings, read_lora
from persongen_jax.weights.formats.lora.writing import write_lora
from persongen_jax.weights.formats.open_clip import open_open_clip
from persongen_jax.weights.formats.photomaker import (
    ENCODER,
    LORA,
    infer_vision_config,
    read_photomaker,
)
from persongen_jax.weights.formats.sdxl.loading import FILE_NAMES
from persongen_jax.weights.formats.sdxl.opening import open_base
from persongen_jax.weights.keys import normalise_clip_vision
from persongen_jax.weights.loader import check_keys, parameter_leaves, prepare_module
from persongen_jax.weights.recognition.arcface import infer_config
from persongen_jax.weights.recognition.embeddings import TOWERS
from persongen_jax.weights.recognition.judges import JUDGES
from persongen_jax.weights.recognition.kinds import context_width
from persongen_jax.weights.recognition.layout import unwrapped
from persongen_jax.weights.recognition.lora_names import COMPONENTS
from persongen_jax.weights.recognition.open_clip import ACTIVATION_NOTE, weight_keys
from persongen_jax.weights.saver import write_json
from persongen_jax.weights.slots import module_slots, processors

IP_ADAPTERS = ("ip-adapter", "ip-adapter-plus", "ip-adapter-faceid", "ip-adapter-faceid-plus")
SINGLE_FILES = ("checkpoint", "unet", "unet-sgm")
ENCODERS = ("dino", "dinov2", "clip-original", "eva-clip")  # files, checked without a base
NO_BASE = ("arcface", "embedding")  # kinds whose keys are checked without a base
LAYERS = ("to_q", "to_k", "to_v", "to_out")


def import_file(path: str | Path, out: str | Path, base: str | Path | None = None) -> str:
    """Check ``path`` and write ``out``; return a line that says what was done.

    Args:
        path: a LoRA of any style, a word's embeddings (Textual Inversion), PhotoMaker, an
            IP-Adapter, InstantID's or PuLID, a single-file SDXL checkpoint, a face recogniser, a
            file of DINO's or DINOv2's image encoder, CLIP in OpenAI's or OpenCLIP's layout, EVA's
            CLIP, FID's Inception, LPIPS or its halves, or FaceNet.
        out: the ``.safetensors`` file to write; for a checkpoint a directory.
        base: diffusers-format SDXL directory that the file is for; its configs suffice. Judges,
            such as face recognisers and image encoders, need none.

    Raises:
        WeightsError: the file is damaged, of another kind, or for another base; all keys that are
            missing, unexpected or misshapen are listed, and nothing is written.
    """
    kind = identify(path).kind
    writer: Callable[..., str]
    if kind == "arcface":
        writer = _import_arcface
    elif kind in ENCODERS and Path(path).is_file():
        writer = {"clip-original": _import_clip, "eva-clip": _import_eva_clip}.get(
            kind, _import_dino
        )
    elif kind in JUDGES and Path(path).is_file():
        writer = functools.partial(_import_judge, kind)
    elif kind == "embedding":
        writer = _import_embedding
    elif kind.startswith("lora-"):
        writer = _import_lora
    elif kind.startswith("photomaker-"):
        writer = _import_photomaker
    elif kind in SINGLE_FILES:
        writer = _import_checkpoint
    elif kind in IP_ADAPTERS:
        writer = _import_ip_adapter
    elif kind == "instantid":
        writer = functools.partial(_import_ip_adapter, opener=read_instantid)
    elif kind == "pulid":
        writer = import_pulid
    else:
        raise UnsupportedAdapter(
            f"{path}: is {identify(path).what}; there is nothing to import. Imported are LoRAs, "
            "embeddings of words, PhotoMaker, IP-Adapters, InstantID's, PuLID, single-file SDXL "
            "checkpoints, face recognisers, and files of DINO's image encoders, of OpenAI's, "
            "OpenCLIP's and EVA's CLIP, of FID's Inception and of LPIPS; directories are read "
            "as they are."
        )
    if kind not in (*NO_BASE, *ENCODERS, *JUDGES) and base is None:
        raise WeightsError(f"{path}: give --base DIR, the SDXL directory that it is for")
    if kind not in SINGLE_FILES and Path(out).suffix != ".safetensors":
        raise WeightsError(f"{out}: the extension must be .safetensors")
    return writer(path, out, base)


class AbstractBase:
    """A base's networks with shapes in place of arrays, from its ``configs`` alone."""

    unet: UNet2DConditionModel
    text_encoder: CLIPTextModel
    text_encoder_2: CLIPTextModel

    def __init__(self, folder: str | Path):
        folder = Path(folder)
        self.configs = {name: read_config(folder / name) for name in COMPONENTS}
        for name in COMPONENTS:
            make = build(self.configs, name, dtype=jnp.float32, param_dtype=jnp.float32)
            setattr(self, name, nnx.eval_shape(make))

    @property
    def widths(self) -> tuple[int, int]:
        """The widths of the two text towers' states."""
        return tuple(self.configs[name]["hidden_size"] for name in COMPONENTS[1:])


def copy_tensors(
    source: TensorSource,
    out: str | Path,
    keys: Iterable[str] | None = None,
    notes: dict[str, str] | None = None,
) -> None:
    """Write tensors of ``source`` under their own names, bit-equal, one at a time.

    Args:
        keys: which of them; None: all. notes: added to the metadata.
    """
    entries = [
        (key, source.info(key)[1], source.info(key)[0], lambda key=key: source.read(key))
        for key in (source.keys() if keys is None else keys)
    ]
    write_safetensors(out, entries, {"format": "pt", **source.metadata, **(notes or {})})


def check_shapes(source: TensorSource, wanted: dict[str, tuple]) -> None:
    """KeyMismatch unless ``source`` has exactly these tensors; lists all that differ."""
    found = {key: tuple(source.info(key)[1]) for key in source.keys()}
    missing = {key: shape for key, shape in wanted.items() if key not in found}
    unexpected = {key: shape for key, shape in found.items() if key not in wanted}
    misshapen = {
        key: (found[key], shape)
        for key, shape in wanted.items()
        if key in found and found[key] != tuple(shape)
    }
    if missing or unexpected or misshapen:
        remedy = "Check that it was made for a base of these sizes."
        raise KeyMismatch(source.describe(), missing, unexpected, misshapen, remedy)


def check_width(source: TensorSource, base: AbstractBase) -> None:
    """WeightsError if the cross-attention reads text states of another width."""
    width, wanted = context_width(source), base.unet.config["cross_attention_dim"][-1]
    if width not in (None, wanted):
        raise WeightsError(
            f"{source.describe()}: is for a cross-attention width of {width}, and the base has "
            f"{wanted} (SD 1.x has 768, SDXL 2048). Get the file that was made for this base."
        )


# ---- One function per kind ---------------------------------------------------------------------


def _import_lora(path, out, base) -> str:
    base = AbstractBase(base)
    modules = {part: module_paths(getattr(base, part)) for part in COMPONENTS}
    layers = base.configs["unet"].get("layers_per_block", 2)
    adapters: Any = read_lora(path, modules, layers_per_block=layers)
    check_adapters(base, adapters, path)
    if words := read_bundled_embeddings(path):
        named = ", ".join(map(repr, words))
        warnings.warn(
            f"{path}: the embeddings of {named} are not written, only the LoRA", stacklevel=2
        )
    write_lora(out, adapters)
    counts = ", ".join(f"{part}: {len(found)} layers" for part, found in adapters.items())
    return f"LoRA in diffusers' style ({counts}); generate reads it by --lora"


def _import_embedding(path, out, base) -> str:
    widths = SDXL_WIDTHS
    if base is not None:
        sizes = [read_config(Path(base) / name)["hidden_size"] for name in TOWERS.values()]
        widths = dict(zip(TOWERS, sizes, strict=True))
    words = read_embeddings(path, widths)
    if len(words) > 1:
        raise UnsupportedAdapter(
            f"{path}: holds the words {', '.join(map(repr, words))}, and a file of this form one; "
            "load it as it is, by generate --embedding"
        )
    ((word, rows),) = words.items()
    write_embeddings(out, word, rows, form="kohya")
    vectors = ", ".join(f"{TOWERS[tower]}: {len(each)}" for tower, each in rows.items())
    return (
        f"the word {word!r} in kohya's form (vectors of {vectors}); generate --embedding reads it"
    )


def _import_photomaker(path, out, base) -> str:
    base = AbstractBase(base)
    with read_photomaker(path) as file:
        check_width(file.tensors, base)
        wanted = {**_encoder_shapes(file, base), **_lora_shapes(base.unet, file.rank)}
        check_shapes(file.tensors, wanted)
        copy_tensors(file.tensors, out)
        more = ", with the face recogniser by --image-encoder and --config.face_encoder"
        said = f"PhotoMaker v{file.version}, LoRA of rank {file.rank}; generate reads it by "
        said += "--method-weights, training by --config.start_from"
        return said + more * (file.version == 2)


def _encoder_shapes(file, base) -> dict[str, tuple]:
    """Shape by key of the ID encoder that fits this base."""
    tower = normalise_clip_vision(subsource(file.id_encoder, "vision_model."))
    config = infer_vision_config(tower)
    kw = {"dtype": jnp.float32, "param_dtype": jnp.float32, "rngs": UnusedRngs()}

    def make():
        vision = CLIPVisionModel(config, with_projection=False, **kw)
        if file.version == 2:
            return PhotoMakerV2IDEncoder(vision, base.widths, **file.sizes, **kw)
        return PhotoMakerIDEncoder(vision, base.widths, **kw)

    slots = module_slots(nnx.eval_shape(make), ENCODER)
    return {key: tuple(slot.shape) for key, slot in slots.items()}


def _attention_loras(unet, rank: int):
    """(index of the layer, its name, "to_q", {half: shape}) for LoRA on every attention layer."""
    for i, (name, attention) in enumerate(processors(unet).items()):
        for short in LAYERS:
            layer = getattr(attention, short)
            layer = layer[0] if short == "to_out" else layer
            inner, outer = layer.kernel.shape
            yield i, name, short, {"down": (rank, inner), "up": (outer, rank)}


def _lora_shapes(unet, rank: int) -> dict[str, tuple]:
    """Shape by key of PhotoMaker's LoRA."""
    return {
        f"{LORA}unet.{name}.processor.{short}_lora.{half}.weight": shape
        for _, name, short, halves in _attention_loras(unet, rank)
        for half, shape in halves.items()
    }


def _import_ip_adapter(path, out, base, opener=read_ip_adapter) -> str:
    base = AbstractBase(base)
    with opener(path) as file:
        check_width(file.tensors, base)
        kw = {"dtype": jnp.float32, "param_dtype": jnp.float32, "rngs": UnusedRngs()}
        image_proj = nnx.eval_shape(lambda: PROJECTIONS[file.kind](**file.sizes, **kw))
        wanted = ip_adapter_shapes(base.unet, image_proj, file.width, file.rank)
        check_shapes(file.tensors, wanted)
        copy_tensors(file.tensors, out)
        tokens = file.sizes["num_tokens"]
        if opener is read_instantid:
            return f"InstantID's adapter, {tokens} tokens; with its IdentityNet generate reads it"
        return f"IP-Adapter, {file.kind}, {tokens} tokens; generate reads it by --method-weights"


def ip_adapter_shapes(
    unet: UNet2DConditionModel, image_proj: Any, width: int, rank: int | None = None
) -> dict[str, tuple]:
    """Shape by key of a projection, of the branch that reads its tokens, and of a LoRA.

    Args:
        unet: that it is for, like ``image_proj`` perhaps in shapes alone.
        width: of the tokens; rank: of the LoRA, if there is one.
    """
    slots = module_slots(image_proj, IMAGE_PROJ)
    wanted = {key: tuple(slot.shape) for key, slot in slots.items()}
    layers: dict[str, Any] = dict(processors(unet))
    for i, (name, attention) in enumerate(layers.items()):
        if name.endswith(".attn2"):
            inner = attention.to_k.kernel.shape[1]
            for short in ("to_k_ip", "to_v_ip"):
                wanted[f"{ADAPTER}{i}.{short}.weight"] = (inner, width)
    if rank is not None:
        for i, _, short, halves in _attention_loras(unet, rank):
            for half, shape in halves.items():
                wanted[f"{ADAPTER}{i}.{short}_lora.{half}.weight"] = shape
    return wanted


def _import_arcface(path, out, base, opener=open_arcface) -> str:
    with opener(path) as source:
        config = infer_config(source)
        kw = {"dtype": jnp.float32, "param_dtype": jnp.float32, "rngs": UnusedRngs()}
        check_keys(parameter_leaves(nnx.eval_shape(lambda: IResNet(config, **kw))), source)
        copy_tensors(source, out)
    size = config["input_size"]
    return f"face recogniser for crops of {size} pixels; training reads it by --config.face_net"


def _import_dino(path, out, base) -> str:
    """The encoder's tensors under the file's own names."""
    source, config = open_dino(path)
    with source, unwrapped(open_file(path)) as file:
        prepare_module(lambda: DinoViT(config, rngs=UnusedRngs()), source)
        copy_tensors(file, out, [key for key in file.keys() if key not in source.ignored])
    option = "dinov2" if config["layer_scale"] else "dino"
    return f"image encoder with patches of {config['patch_size']}; evaluate reads it by --{option}"


def _import_clip(path, out, base) -> str:
    """Both towers under the file's own names; the metadata keep which activation they have."""
    opened = open_open_clip(path)
    kw = {"dtype": jnp.float32, "param_dtype": jnp.float32, "rngs": UnusedRngs()}
    with opened.file as file:
        config, towers = opened.config, opened.towers
        prepare_module(lambda: CLIPTextModel(config, with_projection=True, **kw), towers.text)
        prepare_module(lambda: CLIPVisionModel(config, with_projection=True, **kw), towers.vision)
        act = opened.config["text_config"]["hidden_act"]
        copy_tensors(file, out, weight_keys(file), {ACTIVATION_NOTE: act})
    return (
        f"CLIP with the activation {opened.note}; evaluate reads it by --clip, next to the "
        "tokenizer's files"
    )


def _import_eva_clip(path, out, base) -> str:
    """The towers under the file's own names, without the rotary tables, which are computed."""
    opened = open_eva_clip(path)
    with opened.file as file:
        opened.check()
        copy_tensors(file, out, [k for k in file.keys() if k not in opened.towers.vision.ignored])
    size = opened.vision_config["image_size"]
    if opened.text_config is None:
        return f"EVA-CLIP's image tower at {size} pixels; evaluate reads it by --clip for CLIP-I"
    return (
        f"EVA-CLIP at {size} pixels, both towers; evaluate reads it by --clip, next to the "
        "tokenizer's files"
    )


def _import_judge(kind, path, out, base) -> str:
    return import_judge(kind, path, out, copy_tensors)


def _import_checkpoint(path, out, base) -> str:
    """Each component under diffusers' names, with the configs and tokenizers of ``base``."""
    base_folder, out = Path(base), Path(out)
    if out.is_dir():
        raise WeightsError(f"{out}: exists already; give a new directory")
    kw = {"dtype": jnp.float32, "param_dtype": jnp.float32}
    partial = out.with_name(out.name + ".part")
    shutil.rmtree(partial, ignore_errors=True)
    with open_base(path, config=base) as files:
        for name in ALL_COMPONENTS:
            prepare_module(build(files.configs, name, **kw), files.sources[name])
        for name, source in files.sources.items():
            (partial / name).mkdir(parents=True)
            copy_tensors(source, partial / name / FILE_NAMES[name])
            write_json(partial / name / "config.json", files.configs[name])
        (partial / "scheduler").mkdir()
        write_json(partial / "scheduler" / "scheduler_config.json", files.scheduler_config)
    for note in files.notes:
        warnings.warn(note, stacklevel=2)
    for name in ("tokenizer", "tokenizer_2"):
        shutil.copytree(base_folder / name, partial / name)
    shutil.copy(base_folder / "model_index.json", partial)
    out.unlink(missing_ok=True)
    partial.rename(out)
    return f"diffusers directory, with the configs and tokenizers of {base}; read it by --base"
