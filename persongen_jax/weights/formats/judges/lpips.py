"""LPIPS from torchvision's backbones and the lpips package's heads, or from a whole state of it."""

import os
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from persongen_jax.models.judges.lpips import LPIPS
from persongen_jax.models.layers import UnusedRngs
from persongen_jax.weights.errors import MissingFile, WeightsError
from persongen_jax.weights.files.directory import open_file
from persongen_jax.weights.files.pickles import SUFFIXES
from persongen_jax.weights.files.source import TensorSource
from persongen_jax.weights.loader import load_module
from persongen_jax.weights.recognition.judges import (
    LPIPS_FILES,
    infer_backbone_config,
    lpips_net,
    name_lpips_tensors,
)
from persongen_jax.weights.recognition.layout import unwrapped

WHERE = (
    "Backbones are torchvision's (https://download.pytorch.org/models, BSD-3-Clause); heads are in "
    "the folder lpips/weights/v0.1 of the package lpips (BSD-2-Clause)."
)


class JoinedSource(TensorSource):
    """Several sources with different keys, read as one; closing it closes all."""

    def __init__(self, sources: list[TensorSource]):
        self._owner: dict[str, TensorSource] = {}
        self._sources = sources
        for source in sources:
            for key in source.keys():
                if key in self._owner:
                    raise WeightsError(
                        f"{self._owner[key].describe()} and {source.describe()} both have {key!r}. "
                        "Keep one of them in the folder."
                    )
                self._owner[key] = source

    def keys(self) -> list[str]:
        return list(self._owner)

    def info(self, key: str) -> tuple[np.dtype, tuple[int, ...]]:
        return self._owner[key].info(key)

    def read(self, key: str) -> np.ndarray:
        return self._owner[key].read(key)

    def describe(self) -> str:
        return " and ".join(source.describe() for source in self._sources)

    def close(self) -> None:
        for source in self._sources:
            source.close()


def load_lpips(path: str | os.PathLike, *, dtype: DTypeLike = jnp.float32) -> LPIPS:
    """Open LPIPS on AlexNet or VGG16.

    Args:
        path: a folder with a backbone's file and a file of its heads, or one file with both, which
            is a saved state of the lpips package's LPIPS.
        dtype: of the computation and of the stored weights.

    Raises:
        MissingFile: nothing is there, or a half is missing; the message says what to download.
        WeightsError: any other fault of the files, including KeyMismatch.
    """
    source, config = open_lpips(path)
    with source:
        return load_module(
            lambda: LPIPS(**config, dtype=dtype, param_dtype=dtype, rngs=UnusedRngs()), source
        )


def open_lpips(path: str | os.PathLike) -> tuple[TensorSource, dict]:
    """(the tensors under our names, LPIPS' arguments); closing the source closes the files."""
    path = Path(path)
    if not path.exists():
        raise MissingFile(
            f"{path}: no such file or folder. LPIPS needs a folder with {LPIPS_FILES}. {WHERE}"
        )
    paths = [path]
    if path.is_dir():
        endings = (".safetensors", *SUFFIXES)
        paths = sorted(p for p in path.iterdir() if p.suffix.lower() in endings)
    opened: list[TensorSource] = []
    try:
        net = ""
        for each in paths:
            opened.append(unwrapped(open_file(each)))
            net = lpips_net(opened[-1]) or net
        joined = JoinedSource([name_lpips_tensors(source) for source in opened])
        for part, what in (("backbone.", "backbone"), ("heads.", "heads")):
            if not any(key.startswith(part) for key in joined.keys()):
                raise MissingFile(
                    f"{path}: holds no {what} of LPIPS. Give a folder with {LPIPS_FILES}. {WHERE}"
                )
        return joined, infer_backbone_config(joined, net)
    except BaseException:
        for source in opened:
            source.close()
        raise


__all__ = ["JoinedSource", "load_lpips", "open_lpips"]
