"""FID's Inception from the file that pytorch-fid and torch-fidelity publish."""

import os
from pathlib import Path

import jax.numpy as jnp
from jax.typing import DTypeLike

from persongen_jax.models.judges.inception import InceptionV3
from persongen_jax.models.layers import UnusedRngs
from persongen_jax.weights.errors import MissingFile
from persongen_jax.weights.files.source import TensorSource
from persongen_jax.weights.formats.judges.opening import open_named
from persongen_jax.weights.loader import load_module
from persongen_jax.weights.recognition.judges import (
    INCEPTION_FILE,
    infer_inception_config,
    name_inception_tensors,
)


def load_inception(path: str | os.PathLike, *, dtype: DTypeLike = jnp.float32) -> InceptionV3:
    """Open FID's Inception.

    Args:
        path: pytorch-fid's ``.pth`` (needs the convert extra), or ``.safetensors`` with its keys.
        dtype: of the computation and of the stored weights.

    Raises:
        MissingFile: there is none; the message says what to download.
        WeightsError: any other fault of the file, including KeyMismatch and BadConfig.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingFile(
            f"{path}: no such file. FID, KID and Inception Score need {INCEPTION_FILE} from "
            "https://github.com/mseitzer/pytorch-fid/releases/tag/fid_weights (TensorFlow's "
            "weights, Apache-2.0). Give the downloaded file's path."
        )
    source, config = open_inception(path)
    with source:
        return load_module(
            lambda: InceptionV3(**config, dtype=dtype, param_dtype=dtype, rngs=UnusedRngs()),
            source,
        )


def open_inception(path: str | os.PathLike) -> tuple[TensorSource, dict]:
    """(the tensors under our names, InceptionV3's arguments); closing the source closes the file.

    Raises:
        WeightsError: not such a network, or a fault of the file.
    """
    return open_named(path, name_inception_tensors, infer_inception_config)


__all__ = ["load_inception", "open_inception"]
