"""FaceNet from facenet-pytorch's file."""

import os
from pathlib import Path

import jax.numpy as jnp
from jax.typing import DTypeLike

from persongen_jax.models.judges.facenet import FaceNet
from persongen_jax.models.layers import UnusedRngs
from persongen_jax.weights.errors import MissingFile, WeightsError
from persongen_jax.weights.files.directory import open_file
from persongen_jax.weights.files.source import TensorSource
from persongen_jax.weights.formats.arcface import Recogniser
from persongen_jax.weights.formats.judges.opening import open_named
from persongen_jax.weights.loader import load_module
from persongen_jax.weights.recognition.judges import (
    FACENET_FILE,
    infer_facenet_config,
    name_facenet_tensors,
)

LICENCE = (
    "facenet-pytorch's code is MIT; the licence of its weights, trained on VGGFace2 (withdrawn; "
    "for research), is not stated"
)


def load_facenet(path: str | os.PathLike, *, dtype: DTypeLike = jnp.float32) -> Recogniser:
    """FaceNet and its licence.

    Args:
        path: facenet-pytorch's ``.pt`` (needs the convert extra), or ``.safetensors`` with its
            keys.
        dtype: of the computation and of the stored weights.

    Raises:
        MissingFile: there is none; the message says what to download.
        WeightsError: any other fault of the file, including KeyMismatch and BadConfig.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingFile(
            f"{path}: no such file. FaceNet is {FACENET_FILE} from "
            "https://github.com/timesler/facenet-pytorch/releases. Give the downloaded file's path."
        )
    source, config = open_facenet(path)
    with source:
        net = load_module(
            lambda: FaceNet(**config, dtype=dtype, param_dtype=dtype, rngs=UnusedRngs()), source
        )
    return Recogniser(net, LICENCE)


def open_facenet(path: str | os.PathLike) -> tuple[TensorSource, dict]:
    """(the tensors under our names, FaceNet's arguments); closing the source closes the file.

    Raises:
        WeightsError: not such a network, or a fault of the file.
    """
    return open_named(path, name_facenet_tensors, infer_facenet_config)


def is_facenet(path: str | os.PathLike) -> bool:
    """Whether a file is FaceNet, by its keys; False for what cannot be opened."""
    try:
        with open_file(path) as file:
            return any(key.startswith("repeat_1.0.branch0.conv.") for key in file.keys())
    except WeightsError:
        return False


__all__ = ["LICENCE", "is_facenet", "load_facenet", "open_facenet"]
