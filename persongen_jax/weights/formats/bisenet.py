"""facexlib's parsing net, ``parsing_bisenet.pth``."""

import os
import re
from pathlib import Path

import jax.numpy as jnp
from jax.typing import DTypeLike

from persongen_jax.models.faces.bisenet import BiSeNet
from persongen_jax.models.layers import LayerOptions, UnusedRngs
from persongen_jax.weights.errors import KeyMismatch, MissingFile
from persongen_jax.weights.files.directory import open_file
from persongen_jax.weights.files.source import Renaming
from persongen_jax.weights.loader import load_module
from persongen_jax.weights.recognition.layout import unwrapped

FILE = "parsing_bisenet.pth"
LICENCE = (
    "facexlib's code is MIT; the net was trained on CelebAMask-HQ, which is for non-commercial "
    "research"
)
# Outputs for training alone, and counters.
_UNUSED = re.compile(r"conv_out(16|32)\.|.*num_batches_tracked$")
_FIRST, _LAST = "cp.resnet.conv1.weight", "conv_out.conv_out.weight"


def load_bisenet(path: str | os.PathLike, *, dtype: DTypeLike = jnp.float32) -> BiSeNet:
    """Open the net.

    Args:
        path: facexlib's ``.pth`` (needs the convert extra), or ``.safetensors`` with its keys.
        dtype: of the computation and of the stored weights.

    Raises:
        MissingFile: there is none; the message says what to download.
        WeightsError: any other fault of the file, including KeyMismatch.
    """
    if not Path(path).is_file():
        raise MissingFile(
            f"{path}: no such file. The parsing net is {FILE} from "
            "https://github.com/xinntao/facexlib/releases. Without it, config.pulid_face_parser='' "
            "takes an ellipse."
        )
    with unwrapped(open_file(path)) as file:
        absent = [key for key in (_FIRST, _LAST) if key not in file]
        if absent:
            raise KeyMismatch(file.describe(), absent, remedy=f"It is not {FILE}.")
        table = Renaming(file)
        for key in file.keys():
            if _UNUSED.match(key):
                table.ignore(key)
            else:
                table.add(key, key)
        width, labels = file.info(_FIRST)[1][0], file.info(_LAST)[1][0]
        kw: LayerOptions = {"dtype": dtype, "param_dtype": dtype, "rngs": UnusedRngs()}
        return load_module(lambda: BiSeNet(labels, width=width, **kw), table.source())


__all__ = ["FILE", "LICENCE", "load_bisenet"]
