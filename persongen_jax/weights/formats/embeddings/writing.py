"""Writes a word's embeddings in every form that recognition/embeddings.py lists.

    write_embeddings("me", "<me>", {"clip_l": rows_l, "clip_g": rows_g})  # diffusers' folder
    write_embeddings("me.safetensors", "me", rows, form="kohya")

Files of several words are not written: a word is a file, or a pair of them.
"""

import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from persongen_jax.weights.errors import UnsupportedAdapter, WeightsError
from persongen_jax.weights.files.pickles import write_pickle
from persongen_jax.weights.files.safetensors_file import write_safetensors
from persongen_jax.weights.formats.embeddings.reading import WORD_NOTE, check_rows, check_word
from persongen_jax.weights.recognition.embeddings import TOWERS

# Form -> what its tensors are called, by tower. diffusers' are called as the word.
_KEYS = {
    "kohya": {"clip_l": "clip_l", "clip_g": "clip_g"},
    "pivotal": {"clip_l": "clip_l", "clip_g": "clip_g"},
    "pti": {"clip_l": "text_encoders_0", "clip_g": "text_encoders_1"},
}
WRITTEN_FORMS = ("diffusers", *_KEYS, "a1111-sd1")


def write_embeddings(
    path: str | os.PathLike,
    word: str,
    rows: Mapping[str, Any],
    form: str = "diffusers",
    notes: Mapping[str, str] | None = None,
) -> list[Path]:
    """Write the embeddings of one word; return the files.

    Args:
        path: for "diffusers" a folder, which gets ``learned_embeds.safetensors`` and
            ``learned_embeds_2.safetensors``, or one file's name, next to which the other tower's
            gets ``_2``. For the other forms a file: ".safetensors", torch's ".pt" and ".bin" (they
            need the convert extra), for "pti" also ".pti"; for "a1111-sd1" ".pt" or ".bin".
            AUTOMATIC1111 and ComfyUI call the word as the file is called.
        word: in prompts it stands for all n rows.
        rows: {"clip_l": [n, 768], "clip_g": [n, 1280]}, of any float dtype, which is kept; of one
            tower if only that one was trained.
        form: "diffusers"; "kohya" (kohya's and AUTOMATIC1111's for SDXL); "pivotal" (diffusers'
            pivotal tuning, the same keys); "pti" (cog-sdxl's ``embeddings.pti``); "a1111-sd1"
            (AUTOMATIC1111's for SD 1.x, which holds clip_l alone).
        notes: for the metadata of ".safetensors" files, next to the word.

    Raises:
        UnsupportedAdapter: rows of other shapes, or not finite; an unknown tower.
        WeightsError: an unknown form, or a name that the form does not have.
        MissingDependency: torch's file without PyTorch.
    """
    path = Path(path)
    own = _checked(path, check_word(str(path), word), rows)
    if form not in WRITTEN_FORMS:
        raise WeightsError(f"{path}: form {form!r} is unknown; known: {', '.join(WRITTEN_FORMS)}")
    notes = {WORD_NOTE: word, **(notes or {})}
    if form == "diffusers":
        files = {file: {word: own[tower]} for tower, file in _pair(path).items() if tower in own}
        for file, tensors in files.items():
            _write(file, tensors, notes, (".safetensors", ".bin"))
        return list(files)
    if form == "a1111-sd1":
        _check_suffix(path, (".pt", ".bin"))
        write_pickle(path, _of_sd1(path, word, own))
        return [path]
    tensors = {_KEYS[form][tower]: array for tower, array in own.items()}
    more = (".pti",) if form == "pti" else ()
    _write(path, tensors, notes, (".safetensors", ".pt", ".bin", *more))
    return [path]


def _checked(path: Path, word: str, rows) -> dict[str, np.ndarray]:
    """The rows by tower, in the towers' order."""
    if not rows or set(rows) - set(TOWERS):
        raise UnsupportedAdapter(
            f"{path}: rows of {', '.join(map(repr, rows)) or 'no tower'}; give those of "
            f"{' and '.join(TOWERS)}, or of one of them."
        )
    own = {
        tower: np.atleast_2d(np.ascontiguousarray(rows[tower])) for tower in TOWERS if tower in rows
    }
    for tower, array in own.items():
        check_rows(str(path), word, tower, array, array.shape[-1])
    if len({len(array) for array in own.values()}) > 1:
        said = " and ".join(f"{len(array)} for {tower}" for tower, array in own.items())
        raise UnsupportedAdapter(
            f"{path}: the word {word!r} has {said} rows; give as many for each tower, since both "
            "read a prompt position by position."
        )
    return own


def _pair(path: Path) -> dict[str, Path]:
    if path.suffix not in (".safetensors", ".bin") or path.is_dir():
        path.mkdir(parents=True, exist_ok=True)
        path = path / "learned_embeds.safetensors"
    return {"clip_l": path, "clip_g": path.with_stem(f"{path.stem}_2")}


def _of_sd1(path: Path, word: str, own) -> dict:
    if "clip_l" not in own:
        raise UnsupportedAdapter(
            f"{path}: a1111-sd1 holds the rows of clip_l, and there are none. Write another form."
        )
    if "clip_g" in own:
        warnings.warn(
            f"{path}: a1111-sd1 has no place for {word!r} in {TOWERS['clip_g']}, which is left "
            "out; the form kohya holds both",
            stacklevel=3,
        )
    # The placeholder's token, which the tool replaces.
    return {
        "string_to_token": {"*": 265},
        "string_to_param": {"*": own["clip_l"]},
        "name": word,
        "step": 0,
        "sd_checkpoint": None,
        "sd_checkpoint_name": None,
    }


def _write(path: Path, tensors: Mapping[str, Any], notes: dict, suffixes: tuple) -> None:
    _check_suffix(path, suffixes)
    if path.suffix in (".safetensors", ".pti"):  # cog-sdxl's are safetensors
        entries = [(k, v.shape, v.dtype, lambda v=v: v) for k, v in tensors.items()]
        write_safetensors(path, entries, {"format": "pt", **notes})
    else:
        write_pickle(path, tensors)


def _check_suffix(path: Path, suffixes: tuple) -> None:
    if path.suffix not in suffixes:
        raise WeightsError(f"{path}: the extension must be one of {', '.join(suffixes)}")


__all__ = ["WRITTEN_FORMS", "write_embeddings"]
