"""Finds and opens the weights in one component folder of a diffusers or transformers model."""

import os
import re
from pathlib import Path, PureWindowsPath

import numpy as np

from data_pipeline import text_files
from persongen_jax.weights.errors import (
    BadConfig,
    BadIndex,
    KeyMismatch,
    MissingFile,
    WeightsError,
    shorten,
)
from persongen_jax.weights.files.pickles import SUFFIXES, PickleFile
from persongen_jax.weights.files.safetensors_file import TensorFile
from persongen_jax.weights.files.source import TensorSource
from persongen_jax.weights.files.torchscript import TorchScriptFile, is_torchscript

# model.safetensors, model.fp16.safetensors, model.safetensors.index.json,
# model.safetensors.index.fp16.json; also diffusion_pytorch_model and pytorch_model, and .bin. A
# shard (…-00001-of-00002…) does not match, since only an index may name it.
_WEIGHTS = re.compile(
    r"(diffusion_pytorch_model|pytorch_model|model)"
    r"(?:\.(?P<variant>\w+))?\.(?P<format>safetensors|bin)"
    r"(?P<index>\.index(?:\.(?P<index_variant>\w+))?\.json)?"
)


# First bytes of torch's zip files, and of the older pickles.
_PICKLES = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
_NO_WEIGHTS = {
    b"version https:": "a Git LFS pointer, not the file itself (git lfs pull gets it)",
    b'{"': "JSON and no weights",
    b"{\n": "JSON and no weights",
    b"{ ": "JSON and no weights",
    b"gguf": "a GGUF file, whose quantised weights are not read here",
    b"<!doctype": "a web page, saved in place of the file",
    b"<html": "a web page, saved in place of the file",
}


def path_is_index(path: str | os.PathLike) -> bool:
    return re.search(r"\.index(\.\w+)?\.json$", str(path)) is not None


def _is_safetensors(path, start: bytes) -> bool:
    """Checks the header's length, which may equal a pickle's first bytes: 640 is b"\\x80\\x02"."""
    length = int.from_bytes(start[:8], "little")
    return start[8:9] == b"{" and length + 8 <= os.path.getsize(path)


def _first_bytes(path) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(16)
    except OSError:
        return b""  # the reader reports the reason


def open_file(path: str | os.PathLike) -> TensorSource:
    """Open one weight file, safetensors or torch's own, by its content, else by its extension.

    Raises:
        WeightsError: neither of them, or any fault that the reader finds.
    """
    suffix, start = Path(path).suffix.lower(), _first_bytes(path)
    # Some files have the other kind's extension, or none, as in a download cache.
    if _is_safetensors(path, start):
        return TensorFile(path)
    for sign, what in _NO_WEIGHTS.items():
        if start.lstrip().lower().startswith(sign):
            raise WeightsError(f"{path}: is {what}. Get the weights as .safetensors.")
    if start.startswith(_PICKLES[0]) and suffix in ("", *SUFFIXES) and is_torchscript(path):
        return TorchScriptFile(path)
    if not suffix and start.startswith(_PICKLES):
        return PickleFile(path)
    if path_is_index(path):
        raise WeightsError(f"{path}: an index of shards. Give its folder.")
    if suffix in (".safetensors", ".sft") and start.startswith(_PICKLES):
        raise WeightsError(f"{path}: is one of torch's own files. Rename it to {path}.ckpt.")
    if suffix in (".safetensors", ".sft"):
        return TensorFile(path)
    if suffix in SUFFIXES:
        return PickleFile(path)
    known = ", ".join((".safetensors", *SUFFIXES))
    raise WeightsError(f"{path}: unknown kind of weight file; known are {known}.")


def open_component(folder: str | os.PathLike, variant: str | None = None) -> TensorSource:
    """The weights of one component folder, such as ``unet/``: one file or a set of shards.

    safetensors take precedence over torch's own files. Without ``variant``, plain weights take
    precedence over variants, and a sole variant is used if there are no plain ones.

    Args:
        folder: the component's folder.
        variant: such as "fp16"; None for no preference.

    Raises:
        MissingFile: no folder, no weights in it, or not this variant; lists what is there.
        WeightsError: two sets of weights fit equally well.
        BadIndex: an index that is malformed, leaves the folder, or disagrees with its shards.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise MissingFile(f"{folder}: no such folder. Check the path.")
    path = _choose(folder, variant)
    return ShardedSource(path) if path.suffix == ".json" else open_file(path)


def _choose(folder: Path, variant: str | None) -> Path:
    by_format: dict[str, dict[str | None, list[Path]]] = {"safetensors": {}, "bin": {}}
    for path in sorted(folder.iterdir()):
        match = _WEIGHTS.fullmatch(path.name)
        if match:
            label = match["variant"] or match["index_variant"]
            by_format[match["format"]].setdefault(label, []).append(path)
    there = shorten(sorted(path.name for path in folder.iterdir())) or "nothing"

    for variants in by_format.values():
        if variant in variants:
            return _only(folder, variants[variant])
        if variant is None and len(variants) == 1:
            return _only(folder, *variants.values())
        if variant is None and variants:
            names = ", ".join(sorted(filter(None, variants)))
            raise WeightsError(f"{folder}: holds the variants {names}. Name one as variant.")
    if variant is not None:
        raise MissingFile(f"{folder}: no weights of variant {variant!r}. There is: {there}.")
    raise MissingFile(f"{folder}: no weights. There is: {there}.")


def _only(folder: Path, paths: list[Path]) -> Path:
    if len(paths) > 1:
        names = ", ".join(path.name for path in paths)
        raise WeightsError(f"{folder}: {names} all claim to be its weights. Remove all but one.")
    return paths[0]


class ShardedSource(TensorSource):
    """A set of shards, opened through their index and checked against it.

    Args:
        index: path of the ``*.index.json``, in the same folder as the shards.

    Raises:
        WeightsError: BadIndex, MissingFile, or what a shard's reader raises.
    """

    def __init__(self, index: str | os.PathLike):
        self._index = Path(index)
        self._where = _read_weight_map(self._index)
        names = list(dict.fromkeys(self._where.values()))
        paths = {name: _shard_path(self._index, name) for name in names}
        absent = [name for name, path in paths.items() if not path.is_file()]
        if absent:
            raise MissingFile(
                f"{self._index}: the shards {shorten(absent)} are missing. Fetch them."
            )
        self._shards: dict[str, TensorSource] = {}
        try:
            for name, path in paths.items():
                self._shards[name] = open_file(path)
            self._check()
        except BaseException:
            self.close()
            raise

    def keys(self) -> list[str]:
        return list(self._where)

    def info(self, key: str) -> tuple[np.dtype, tuple[int, ...]]:
        return self._shard(key).info(key)

    def read(self, key: str) -> np.ndarray:
        return self._shard(key).read(key)

    def describe(self) -> str:
        return str(self._index)

    def close(self) -> None:
        for shard in self._shards.values():
            shard.close()

    def _shard(self, key):
        if key not in self._where:
            raise KeyMismatch(self._index, missing=[key])
        return self._shards[self._where[key]]

    def _check(self):
        for name, shard in self._shards.items():
            held = set(shard.keys())
            listed = {key for key, shard_name in self._where.items() if shard_name == name}
            if listed - held:
                raise BadIndex(
                    f"{self._index}: lists {shorten(sorted(listed - held))} in {name}, which lacks "
                    "them. Index and shards are of different saves; fetch all of them again."
                )
            if held - listed:
                raise BadIndex(
                    f"{self._index}: does not list {shorten(sorted(held - listed))} of {name}. "
                    "Index and shards are of different saves; fetch all of them again."
                )


def _read_weight_map(path: Path) -> dict[str, str]:
    index = read_json(path, BadIndex)
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise BadIndex(f"{path}: has no weight_map that names the shards. Fetch it again.")
    if not all(isinstance(name, str) and name for name in weight_map.values()):
        raise BadIndex(f"{path}: weight_map must map keys to file names. Fetch it again.")
    return weight_map


def _shard_path(index: Path, name: str) -> Path:
    """The shard's path if it is inside the index's folder: a downloaded index is not trusted."""
    # Windows' rules handle both kinds of slash, and drives.
    parts = PureWindowsPath(name)
    if parts.anchor or ".." in parts.parts or "\0" in name:
        raise BadIndex(f"{index}: the shard {name!r} is outside its folder. Do not use this file.")
    path = index.parent / name
    real, home = path.resolve(), index.parent.resolve()
    if not real.is_relative_to(home) and real.parent != _hub_blobs(index.parent):
        raise BadIndex(
            f"{index}: the shard {name!r} is a link to {real}, outside its folder. Put the file "
            "itself there."
        )
    return path


def _hub_blobs(folder: Path) -> Path | None:
    """The blobs folder of the Hugging Face cache that holds the snapshot ``folder``, else None.

    There, ``models--x/snapshots/<revision>/unet/file`` is a link to ``models--x/blobs/<hash>``.
    """
    for parent in folder.absolute().parents:
        if parent.name == "snapshots":
            return (parent.parent / "blobs").resolve()
    return None


def read_config(folder: str | os.PathLike) -> dict:
    """The component's ``config.json``.

    Raises:
        MissingFile: there is none. BadConfig: it is not a JSON object.
    """
    return read_json(Path(folder) / "config.json", BadConfig)


def read_json(path: Path, error_class: type[Exception]) -> dict:
    """The JSON object in a file of a model's directory.

    Raises:
        MissingFile: there is none. ``error_class``: it is not a JSON object.
    """
    if not path.is_file():
        raise MissingFile(f"{path}: no such file. Check the path, or fetch it.")
    try:
        content = text_files.read_json(path)
    except text_files.TextError as error:
        raise error_class(f"{error}. Fetch it again.") from None
    if not isinstance(content, dict):
        raise error_class(f"{path}: must hold a JSON object, not a {type(content).__name__}.")
    return content


__all__ = ["ShardedSource", "open_component", "open_file", "read_config", "read_json"]
