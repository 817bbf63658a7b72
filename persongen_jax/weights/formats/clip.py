"""CLIP, whole or its image tower: transformers' directories, OpenAI's, OpenCLIP's, EVA's files."""

import os
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from persongen_jax.models.encoders.clip import CLIPTextModel, CLIPVisionModel
from persongen_jax.models.encoders.eva_clip import EvaClipVisionModel
from persongen_jax.models.layers import LayerOptions, UnusedRngs
from persongen_jax.parallel.sharding import Shardings
from persongen_jax.weights.errors import MissingFile
from persongen_jax.weights.files.directory import open_component, read_config
from persongen_jax.weights.formats.eva_clip import holds_eva_clip, open_eva_clip
from persongen_jax.weights.formats.open_clip import open_open_clip, original_file
from persongen_jax.weights.keys import normalise_clip_text, normalise_clip_vision
from persongen_jax.weights.loader import load_module
from persongen_jax.weights.recognition.open_clip import Towers


def load_vision_tower(
    folder: str | os.PathLike,
    *,
    dtype: DTypeLike = jnp.float32,
    param_dtype: DTypeLike | None = None,
    shardings: Shardings | None = None,
) -> tuple[CLIPVisionModel, jax.Array | None]:
    """Open the image tower of a CLIP directory (a full CLIPModel's, or a vision model's), or the
    one in a PhotoMaker file.

    Returns:
        (tower without projection, the projection's kernel [d, p] or None).

    Raises:
        MissingFile: no such directory; the message says what to download.
        WeightsError: any other fault of its files.
    """
    folder = Path(folder)
    if folder.is_file():
        from persongen_jax.weights.formats.photomaker import load_photomaker_tower

        tower = load_photomaker_tower(
            folder, dtype=dtype, param_dtype=param_dtype, shardings=shardings
        )
        return tower, None
    if not folder.is_dir():
        raise MissingFile(
            f"{folder}: no such directory. The references are read by a CLIP image tower; give "
            "one, a transformers folder such as openai/clip-vit-large-patch14 or a PhotoMaker "
            "file: to train as --config.id_encoder=PATH, to evaluate and convert as --id-encoder, "
            "to generate as --image-encoder (next to a face recogniser --clip, for a style "
            "--style-encoder), to load_method and load_style as encoder (next to a recogniser clip)"
        )
    config = read_config(folder)
    with open_component(folder) as source:
        source = normalise_clip_vision(source)
        projects = "visual_projection.weight" in source
        tower = load_module(
            lambda: CLIPVisionModel(
                config,
                with_projection=projects,
                dtype=dtype,
                param_dtype=dtype if param_dtype is None else param_dtype,
                rngs=UnusedRngs(),
            ),
            source,
            shardings=shardings,
        )
    if tower.visual_projection is None:
        return tower, None
    projection = tower.visual_projection.kernel.get_value()
    tower.visual_projection = nnx.data(None)
    return tower, projection


class Clip(NamedTuple):
    """The result of :func:`load_clip`: both towers with their projections, and the tokenizer.

    text_model, tokenizer: None of an EVA-CLIP's file that holds the image tower alone.
    note: of a file in OpenAI's or OpenCLIP's layout which activation was chosen, and why; else "".
    """

    text_model: CLIPTextModel | None
    vision_model: CLIPVisionModel | EvaClipVisionModel
    tokenizer: Any
    note: str = ""


def load_clip(
    folder: str | os.PathLike,
    *,
    dtype: DTypeLike = jnp.float32,
    param_dtype: DTypeLike | None = None,
    shardings: Shardings | None = None,
) -> Clip:
    """Open a full CLIPModel's directory: config.json, weights and tokenizer files.

    Or a file in OpenAI's or OpenCLIP's layout (see ``open_open_clip``), of EVA-02's CLIP (see
    ``open_eva_clip``), or OpenCLIP's folder, with the tokenizer's files next to it.

    Raises:
        MissingFile: the directory or its tokenizer is missing; the message says what to download.
        WeightsError: any other fault of its files, such as a missing tower or projection; EVA's
            text tower alone may be missing.
    """
    folder = Path(folder)
    if not folder.exists():
        raise _no_clip(folder)
    kw: LayerOptions = {
        "dtype": dtype,
        "param_dtype": dtype if param_dtype is None else param_dtype,
        "rngs": UnusedRngs(),
    }

    def load(config: dict, towers: Towers) -> tuple[CLIPTextModel, CLIPVisionModel]:
        text = load_module(
            lambda: CLIPTextModel(config, with_projection=True, **kw),
            towers.text,
            shardings=shardings,
        )
        vision = load_module(
            lambda: CLIPVisionModel(config, with_projection=True, **kw),
            towers.vision,
            shardings=shardings,
        )
        return text, vision

    original = original_file(folder)
    if original and holds_eva_clip(original):
        eva = open_eva_clip(original)
        with eva.file:
            eva_vision, eva_text = eva.load(kw, shardings)
        tokenizer = None if eva_text is None else _load_tokenizer(original.parent)
        return Clip(eva_text, eva_vision, tokenizer)
    if original:
        opened = open_open_clip(original)
        with opened.file:
            models = load(opened.config, opened.towers)
        return Clip(*models, _load_tokenizer(original.parent), opened.note)
    config = read_config(folder)
    with open_component(folder) as source:
        models = load(config, Towers(normalise_clip_text(source), normalise_clip_vision(source)))
    return Clip(*models, _load_tokenizer(folder))


def load_clip_tokenizer(folder: str | os.PathLike) -> tuple[Any, int]:
    """The tokenizer of what :func:`load_clip` opens, and its text tower's number of positions.

    Only headers of weights are read.

    Raises:
        as load_clip; ValueError: a file without a text tower.
    """
    folder = Path(folder)
    if not folder.exists():
        raise _no_clip(folder)
    original = original_file(folder)
    if original and holds_eva_clip(original):
        eva = open_eva_clip(original)
        with eva.file:
            text = eva.text_config
        if text is None:
            raise ValueError(
                f"{original}: holds an image tower alone; captions need a whole CLIP, such as "
                "EVA02_CLIP_L_336_psz14_s6B.pt"
            )
    elif original:
        opened = open_open_clip(original)
        with opened.file:
            text = opened.config["text_config"]
    else:
        text = read_config(folder).get("text_config", {})
    positions = text.get("max_position_embeddings", 77)  # transformers omits the default
    return _load_tokenizer(original.parent if original else folder), positions


def _no_clip(folder: Path) -> MissingFile:
    return MissingFile(
        f"{folder}: no such directory or file. Captions are compared by a whole CLIP; give a "
        "transformers folder such as openai/clip-vit-large-patch14-336, or OpenAI's or OpenCLIP's "
        "file"
    )


def _load_tokenizer(folder: Path):
    if not (folder / "vocab.json").is_file() and not (folder / "tokenizer.json").is_file():
        raise MissingFile(
            f"{folder}: no tokenizer there (vocab.json and merges.txt, or tokenizer.json). Fetch "
            "it from where the weights are from; that of openai/clip-vit-base-patch32 is every "
            "CLIP's."
        )
    # transformers advises to install PyTorch, which its tokenizers do not need.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(str(folder), local_files_only=True)
