"""CLIP in OpenAI's own layout and in OpenCLIP's, which has the same names."""

import os
from pathlib import Path
from typing import NamedTuple

from persongen_jax.weights.errors import BadConfig
from persongen_jax.weights.files.directory import open_file, read_json
from persongen_jax.weights.files.source import TensorSource, closed_on_error
from persongen_jax.weights.recognition.layout import unwrapped
from persongen_jax.weights.recognition.open_clip import (
    Towers,
    choose_activation,
    infer_clip_config,
    split_towers,
)

FILE_NAMES = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
)
CONFIG = "open_clip_config.json"
_TRANSFORMERS = ("model*.safetensors*", "pytorch_model*.bin*")


class OpenClipFile(NamedTuple):
    """The result of :func:`open_open_clip`; ``file`` has to be closed.

    file: all its tensors under their own names. towers: the same by tower, under transformers'.
    config: as of transformers' CLIPModel. note: which activation was chosen, and why.
    """

    file: TensorSource
    towers: Towers
    config: dict
    note: str


def original_file(path: str | os.PathLike) -> Path | None:
    """The file in OpenAI's or OpenCLIP's layout at ``path``: itself, or OpenCLIP's in a folder.

    None for a folder without one, and for one with transformers' weights, which are preferred.
    """
    path = Path(path)
    if path.is_file():
        return path
    if any(next(path.glob(pattern), None) for pattern in _TRANSFORMERS):
        return None
    return next((path / name for name in FILE_NAMES if (path / name).is_file()), None)


def open_open_clip(path: str | os.PathLike) -> OpenClipFile:
    """Open a state dict of OpenAI's or OpenCLIP's, in torch's or safetensors' format.

    A file open_clip_config.json next to it says how many heads it has and which activation.

    Raises:
        WeightsError: it is not a whole CLIP, or any fault of the file.
    """
    path = Path(path)
    stated = _stated(path.parent / CONFIG)
    with closed_on_error(open_file(path)) as opened:
        file = unwrapped(opened)
        towers = split_towers(file)
        text = towers.text
        table = "embeddings.token_embedding.weight"
        width = text.info(table)[1][-1] if table in text.keys() else 0
        act, why = choose_activation(file, path.name, width, stated)
        config = infer_clip_config(towers, act, stated)
    return OpenClipFile(file, towers, config, f"{act} ({why})")


def _stated(path: Path) -> dict | None:
    if not path.is_file():
        return None
    found = read_json(path, BadConfig).get("model_cfg")
    if not isinstance(found, dict):
        raise BadConfig(f"{path}: has no model_cfg. Fetch it again, or remove it.")
    return found


__all__ = ["CONFIG", "FILE_NAMES", "OpenClipFile", "open_open_clip", "original_file"]
