"""Reads embeddings of words from every form that recognition/embeddings.py lists.

    words = read_embeddings("learned_embeds.safetensors", {"clip_l": 768, "clip_g": 1280})
    words["<me>"]["clip_g"]  # [n, 1280]

There is a row for each of the word's n tokens.
"""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from persongen_jax.weights.errors import KeyMismatch, MissingFile, UnsupportedAdapter, shorten
from persongen_jax.weights.files.directory import open_file
from persongen_jax.weights.files.source import TensorSource
from persongen_jax.weights.recognition.embeddings import TOWERS, read_embedding_layout
from persongen_jax.weights.recognition.kinds import NAMES, classify

SDXL_WIDTHS = {"clip_l": 768, "clip_g": 1280}
WORD_NOTE = "word"  # our own files name their word in the metadata

Path_ = str | os.PathLike
Files = Path_ | Sequence[Path_] | Mapping[str, Path_]
Words = dict[str, dict[str, np.ndarray]]  # word to {tower: [n, width]}

# learned_embeds_2-steps-500.safetensors: the stem, the second tower's mark, what a trainer adds.
_STEM = re.compile(r"(?P<stem>.+?)(?P<second>_2)?(?P<steps>-steps-\d+)?")
_FOLDER_FILES = [f"learned_embeds{mark}" for mark in ("", "_2")]
_SUFFIXES = (".safetensors", ".bin")


class _Part(NamedTuple):
    """One file: its path, form, and words ("" for one that is not named)."""

    path: Path
    form: str
    words: Words
    note: str


def read_embeddings(
    files: Files, widths: Mapping[str, int] = SDXL_WIDTHS, token: str | Sequence[str] = ""
) -> Words:
    """The words of a file, of a pair of files with a tower each, or of diffusers' folder.

    A file with a word for one tower is read together with the one next to it that has the same word
    for the other tower: ``learned_embeds.safetensors`` and ``learned_embeds_2.safetensors``.

    Args:
        files: a path, several that belong together, or {"clip_l": path, "clip_g": path} where
            neither width nor name tells a tower.
        widths: of the base's two tables of embeddings, by tower.
        token: the word, instead of the file's own. Several: the file's rows belong to one each.
            Where neither says it: cog-sdxl's rows are ``<s0>``, ``<s1>``, … as its prompts have
            them, other words are called as the file is, as in AUTOMATIC1111.

    Returns:
        word -> {"clip_l": [n, width], "clip_g": [n, width]} in the file's dtype, n rows for the
        word's n tokens; a tower that the files lack is left out.

    Raises:
        MissingFile: a file does not exist, or a folder has none of these names.
        UnsupportedAdapter: another kind of file, another base's widths, values that are not finite,
            a tower that cannot be told, two embeddings of one word, a token that does not fit.
        WeightsError: the file is damaged or not safe to read.
    """
    parts = _read_parts(files, widths)
    where = " and ".join(str(part.path) for part in parts)
    # AUTOMATIC1111 calls a word as its file.
    note = parts[0].note
    unnamed = note or min((part.path.stem for part in parts), key=len)
    words: Words = {}
    for part in parts:
        for word, towers in part.words.items():
            own = words.setdefault(word, {})
            if both := own.keys() & towers.keys():
                raise UnsupportedAdapter(
                    f"{where}: both have an embedding of {word or 'a word'} for "
                    f"{TOWERS[min(both)]}. Give files of different towers, or load them one by one."
                )
            own.update(towers)
    for word, towers in words.items():
        counts = {tower: len(rows) for tower, rows in towers.items()}
        if len(set(counts.values())) > 1:
            said = " and ".join(f"{n} vectors for {TOWERS[t]}" for t, n in counts.items())
            raise UnsupportedAdapter(
                f"{where}: the word {word or unnamed!r} has {said}, but both read a prompt "
                "position by position. Take both from one save."
            )
    if parts[0].form == "cog-sdxl" and not token and not note and "" in words:
        words |= _by_vector(words.pop(""))
    return _named(where, words, token, unnamed)


def embedding_files(folder: Path_) -> dict[str, Path]:
    """The files of diffusers' Textual Inversion in a folder, by tower; {} if there are none."""
    found = {}
    for tower, name in zip(TOWERS, _FOLDER_FILES, strict=True):
        there = [
            path for suffix in _SUFFIXES if (path := Path(folder) / f"{name}{suffix}").exists()
        ]
        if there:
            found[tower] = there[0]
    return found


def check_rows(where: str, word: str, tower: str, rows: np.ndarray, width: int) -> None:
    """UnsupportedAdapter unless ``rows`` are finite and [n, width] with n at least 1."""
    if rows.ndim != 2 or rows.shape[1] != width or not len(rows):
        family = {768: " (SD 1.x's)", 1024: " (SD 2.x's)"}
        said = family.get(rows.shape[-1], "") if rows.ndim else ""
        raise UnsupportedAdapter(
            f"{where}: the embedding of the word {word!r} for {tower} has shape "
            f"{list(rows.shape)}{said}, but {TOWERS[tower]} has width {width}. Check that it was "
            "trained for SDXL."
        )
    if not np.isfinite(np.asarray(rows, np.float32)).all():
        raise UnsupportedAdapter(
            f"{where}: the embedding of the word {word!r} for {tower} is not finite. Use an "
            "earlier checkpoint of its training."
        )


# ---- Which files -------------------------------------------------------------------------------


def _read_parts(files: Files, widths) -> list[_Part]:
    if isinstance(files, Mapping):
        if unknown := [tower for tower in files if tower not in TOWERS]:
            raise UnsupportedAdapter(
                f"{unknown[0]!r}: no tower has this name; name the files' towers "
                f"{' or '.join(TOWERS)}."
            )
        return [_read_file(Path(path), widths, tower) for tower, path in files.items()]
    if not isinstance(files, (str, os.PathLike)):
        parts = [_read_file(Path(path), widths) for path in files]
        if not parts:
            raise MissingFile("an empty list of embedding files; give at least one.")
        return parts
    path = Path(files)
    if path.is_dir():
        if found := embedding_files(path):
            return [_read_file(file, widths, tower) for tower, file in found.items()]
        names = shorten(sorted(each.name for each in path.iterdir())) or "no files"
        raise MissingFile(
            f"{path}: is a folder without {_FOLDER_FILES[0]}{_SUFFIXES[0]} (diffusers' name); give "
            f"the file itself. There are: {names}."
        )
    part = _read_file(path, widths)
    other = _other_tower(part, widths)
    return [part] if other is None else [part, other]


def _other_tower(part: _Part, widths) -> _Part | None:
    """The file next to this one that has the same words for the other tower."""
    match = _STEM.fullmatch(part.path.stem)
    if part.form != "diffusers" or match is None:
        return None
    mark = "" if match["second"] else "_2"
    beside = part.path.with_stem(f"{match['stem']}{mark}{match['steps'] or ''}")
    if not beside.is_file():
        return None
    with open_file(beside) as source:
        layout = read_embedding_layout(source)
        if layout is None or layout.form != "diffusers" or set(layout.words) != set(part.words):
            return None
    other = _read_file(beside, widths)
    same = any(part.words[word].keys() & other.words[word].keys() for word in part.words)
    return None if same else other


# ---- One file ----------------------------------------------------------------------------------


def _read_file(path: Path, widths, tower: str = "") -> _Part:
    with open_file(path) as source:
        kind, _ = classify(source)
        layout = read_embedding_layout(source) if kind in ("embedding", "unknown") else None
        if layout is None:
            raise UnsupportedAdapter(
                f"{path}: is {NAMES[kind]}, and no embedding of words. Which files are, and what "
                "reads others, say docs/formats.md and docs/convert.md."
            )
        if layout.others:
            raise KeyMismatch(
                path,
                unexpected={key: source.info(key)[1] for key in layout.others},
                remedy="Embeddings for SDXL have no such tensors; get the file made for SDXL.",
            )
        note = source.metadata.get(WORD_NOTE, "")
        words: Words = {}
        for word, by_tower in layout.words.items():
            for known, keys in by_tower.items():
                name = word or note or path.stem
                rows = _rows(source, keys)
                where = tower or known or _tower(path, name, rows, widths)
                if tower and known not in ("", tower):
                    raise UnsupportedAdapter(
                        f"{path}: is an embedding for {TOWERS[known]}, not for {TOWERS[tower]}. "
                        "Give the path alone; the file says its tower."
                    )
                check_rows(str(path), name, where, rows, widths[where])
                words.setdefault(word, {})[where] = rows
    return _Part(path, layout.form, words, note)


def _rows(source: TensorSource, keys) -> np.ndarray:
    tensors = [np.asarray(source.read(key)) for key in keys]
    tensors = [t[None] if t.ndim == 1 else t for t in tensors]
    return np.concatenate(tensors) if len(tensors) > 1 else tensors[0]


def _tower(path: Path, word: str, rows: np.ndarray, widths) -> str:
    """The tower of this width; of two towers as wide as each other, the one that the name says."""
    fitting = [tower for tower in TOWERS if widths[tower] == rows.shape[1]]
    if len(fitting) == 1:
        return fitting[0]
    if not fitting:
        of = {1024: ", as SD 2.x's are"}.get(rows.shape[1], "")
        wanted = " and ".join(f"{widths[tower]} for {name}" for tower, name in TOWERS.items())
        raise UnsupportedAdapter(
            f"{path}: the embedding of the word {word!r} is {rows.shape[1]} wide{of}, but this "
            f"base needs {wanted}. Get one that was trained for SDXL."
        )
    match = _STEM.fullmatch(path.stem)
    if match and match["second"]:
        return "clip_g"
    if match and match["stem"] == _FOLDER_FILES[0]:
        return "clip_l"
    raise UnsupportedAdapter(
        f"{path}: both text encoders are {rows.shape[1]} wide, so that the file does not say whose "
        f'it is. Give {{"clip_l": path}} or {{"clip_g": path}}.'
    )


# ---- Which words -------------------------------------------------------------------------------


def _by_vector(towers: dict[str, np.ndarray]) -> Words:
    """A word for each row, as cog-sdxl's prompts call them."""
    count = len(next(iter(towers.values())))
    return {f"<s{i}>": {t: rows[i : i + 1] for t, rows in towers.items()} for i in range(count)}


def _named(where: str, words: Words, token, unnamed: str) -> Words:
    if not token:
        return {check_word(where, word or unnamed): towers for word, towers in words.items()}
    if len(words) > 1:
        raise UnsupportedAdapter(
            f"{where}: holds the words {shorten(words)}, so that it is not clear which is to be "
            f"called {token!r}. Load it without a word of your own."
        )
    (towers,) = words.values()
    if isinstance(token, str):
        return {check_word(where, token): towers}
    count = len(next(iter(towers.values())))
    if len(token) != count or len(set(token)) != count:
        raise UnsupportedAdapter(
            f"{where}: has {count} vectors, and {shorten(token)} are {len(token)} words. Give one "
            "word for all, or a different one for each."
        )
    return {
        check_word(where, word): {tower: rows[i : i + 1] for tower, rows in towers.items()}
        for i, word in enumerate(token)
    }


def check_word(where: str, word: str) -> str:
    """``word``; UnsupportedAdapter unless a prompt can contain it."""
    if not isinstance(word, str) or not word or word != word.strip() or not word.isprintable():
        raise UnsupportedAdapter(
            f"{where}: {word!r} is no word that a prompt can contain. Give another one as token."
        )
    return word


__all__ = [
    "SDXL_WIDTHS",
    "WORD_NOTE",
    "Words",
    "check_rows",
    "check_word",
    "embedding_files",
    "read_embeddings",
]
