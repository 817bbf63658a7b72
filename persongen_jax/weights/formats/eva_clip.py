"""EVA-CLIP: baaivision's files, and timm's and OpenCLIP's of the same weights."""

import os
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
from jax.typing import DTypeLike

from persongen_jax.models.encoders.clip import CLIPTextModel
from persongen_jax.models.encoders.eva_clip import EvaClipVisionModel
from persongen_jax.models.layers import LayerOptions, UnusedRngs
from persongen_jax.parallel.sharding import Shardings
from persongen_jax.weights.errors import MissingFile
from persongen_jax.weights.files.directory import open_file
from persongen_jax.weights.files.source import TensorSource, closed_on_error
from persongen_jax.weights.formats.open_clip import original_file
from persongen_jax.weights.loader import load_module, prepare_module
from persongen_jax.weights.recognition.eva_clip import (
    FILE,
    EvaTowers,
    head_width,
    infer_eva_config,
    infer_eva_text_config,
    is_eva_clip,
    split_eva_towers,
)
from persongen_jax.weights.recognition.layout import unwrapped


class EvaClipFile(NamedTuple):
    """The result of :func:`open_eva_clip`; ``file`` has to be closed.

    file: all its tensors under their own names. towers: the same by tower, under ours.
    vision_config: EvaClipVisionModel's. text_config: CLIPTextModel's, None without a text tower.
    """

    file: TensorSource
    towers: EvaTowers
    vision_config: dict
    text_config: dict | None

    def build_vision(self, kw: LayerOptions) -> EvaClipVisionModel:
        return EvaClipVisionModel(self.vision_config, **kw)

    def build_text(self, kw: LayerOptions) -> CLIPTextModel:
        return CLIPTextModel(self.text_config or {}, with_projection=True, **kw)

    def check(self) -> None:
        """KeyMismatch unless every tensor has its place and shape; reads none."""
        kw: LayerOptions = {"dtype": jnp.float32, "param_dtype": jnp.float32, "rngs": UnusedRngs()}
        prepare_module(lambda: self.build_vision(kw), self.towers.vision)
        if self.towers.text is not None:
            prepare_module(lambda: self.build_text(kw), self.towers.text)

    def load(
        self, kw: LayerOptions, shardings: Shardings | None = None
    ) -> tuple[EvaClipVisionModel, CLIPTextModel | None]:
        """(image tower, text tower or None); KeyMismatch as ``load_module``."""
        vision = load_module(lambda: self.build_vision(kw), self.towers.vision, shardings=shardings)
        if self.towers.text is None:
            return vision, None
        text = load_module(lambda: self.build_text(kw), self.towers.text, shardings=shardings)
        return vision, text


def holds_eva_clip(path: str | os.PathLike) -> bool:
    """Whether a weight file is an EVA-CLIP's, of a variant that is read or not; reads no tensor.

    Raises:
        WeightsError: the file cannot be opened.
    """
    with unwrapped(open_file(path)) as source:
        return is_eva_clip(source)


def open_eva_clip(path: str | os.PathLike) -> EvaClipFile:
    """Open a state dict of EVA-02's CLIP, in torch's or safetensors' format.

    Raises:
        WeightsError: it has no such image tower, or any fault of the file.
    """
    with closed_on_error(open_file(path)) as opened:
        file = unwrapped(opened)
        towers = split_eva_towers(file)
        vision = infer_eva_config(towers.vision, head_width(file))
        text = None if towers.text is None else infer_eva_text_config(towers.text)
    return EvaClipFile(file, towers, vision, text)


def load_eva_vision(
    path: str | os.PathLike,
    *,
    dtype: DTypeLike = jnp.float32,
    param_dtype: DTypeLike | None = None,
    shardings: Shardings | None = None,
) -> EvaClipVisionModel:
    """Open the image tower of EVA-02's CLIP, which PuLID reads faces by; a text tower is not read.

    Args:
        path: baaivision's ``.pt`` (needs the convert extra), or a ``.safetensors`` or torch file
            with the same, OpenCLIP's or timm's keys; or OpenCLIP's folder.
        dtype: of the computation; param_dtype: of the stored weights, by default the same.
        shardings: as ``load_module``'s.

    Raises:
        MissingFile: there is none; the message says what to download.
        WeightsError: any other fault of the file, including KeyMismatch and BadConfig.
    """
    file = original_file(path)
    if file is None:
        raise MissingFile(
            f"{path}: no file of EVA-CLIP is there. Take {FILE} from QuanSun/EVA-CLIP, or "
            "OpenCLIP's file of timm/eva02_large_patch14_clip_336.merged2b_s6b_b61k (both MIT)."
        )
    kw: LayerOptions = {
        "dtype": dtype,
        "param_dtype": dtype if param_dtype is None else param_dtype,
        "rngs": UnusedRngs(),
    }
    opened = open_eva_clip(Path(file))
    with opened.file:
        return load_module(
            lambda: opened.build_vision(kw), opened.towers.vision, shardings=shardings
        )


__all__ = ["EvaClipFile", "holds_eva_clip", "load_eva_vision", "open_eva_clip"]
