"""Words that a file defines with its own embeddings (Textual Inversion, arXiv 2208.01618).

The file is one of embeddings alone (weights/formats/embeddings/), or a LoRA's that was trained
together with words: ``bundle_emb.WORD.clip_l`` and ``.clip_g``, one row per token of the word. The
rows are appended to the text encoders' tables, the word is added to the tokenizers.
"""

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from persongen_jax.pipeline.checks import warn_of_call
from persongen_jax.weights.formats.embeddings.reading import (
    Files,
    Words,
    check_rows,
    read_embeddings,
)
from persongen_jax.weights.formats.lora.reading import read_bundled_embeddings
from persongen_jax.weights.formats.sdxl.loading import SDXLBase
from persongen_jax.weights.recognition.embeddings import TOWERS

LORA, EMBEDDING, METHOD = "LoRA", "embedding", "method"  # what words come from
Key = tuple[str, str]  # (kind, name)


def read_words(path: str | Path, base: SDXLBase) -> Words:
    """The words bundled with a LoRA; usually {}.

    Raises:
        UnsupportedAdapter: embeddings whose width differs from the base's, or that are not finite.
    """
    words = {}
    for word, towers in read_bundled_embeddings(path).items():
        own = {t: np.atleast_2d(rows) for t, rows in towers.items() if t in TOWERS}
        for tower, rows in own.items():
            check_rows(str(path), word, tower, rows, _table(base, tower).shape[1])
        without = ", ".join(sorted(set(towers) - set(TOWERS)))
        if without:
            warn_of_call(
                f"{path}: {without} of the word {word!r} (added after a text encoder) is unused"
            )
        if own:
            words[word] = own
    _warn_of_missing_towers(str(path), words)
    return words


def read_embedding_words(files: Files, base: SDXLBase, token: str | Sequence[str] = "") -> Words:
    """The words of embedding files, for this base; arguments and errors of ``read_embeddings``."""
    widths = {tower: _table(base, tower).shape[1] for tower in TOWERS}
    words = read_embeddings(files, widths, token)
    _warn_of_missing_towers(
        name_of(files), words, "; if there is a file for it too, give both together"
    )
    return words


def name_of(files: Files) -> str:
    """What messages call one file, or several that belong together."""
    if isinstance(files, (str, os.PathLike)):
        return str(files)
    several = files.values() if isinstance(files, Mapping) else files
    return " and ".join(map(str, several))


class AddedWords:
    """The words that a base's tokenizers and text encoders have in addition to their vocabulary."""

    def __init__(self, base: SDXLBase):
        self.base: SDXLBase = base
        self._by_key: dict[Key, Words] = {}

    def add(self, name: str, words: Words, kind: str = LORA) -> None:
        """Add the words of the file of this name, replacing its earlier ones."""
        by_key = self._without({(kind, name)})
        for word in words:
            if _in_vocabulary(self.base.tokenizers, word):
                warn_of_call(
                    f"the word {word!r} of {kind} {name} is also an ordinary one: wherever prompts "
                    "have it, the embedding is read instead"
                )
        _warn_of_duplicates(by_key, (kind, name), words)
        self._set({**by_key, (kind, name): words})

    def drop(self, names: Iterable[str], kind: str = LORA) -> None:
        """Remove the words of these files."""
        self._set(self._without({(kind, name) for name in names}))

    def of(self, kind: str) -> dict[str, Words]:
        """The words from files of a kind, by the files' names."""
        return {name: words for (of, name), words in self._by_key.items() if of == kind}

    def _without(self, keys: set[Key]) -> dict[Key, Words]:
        return {key: words for key, words in self._by_key.items() if key not in keys}

    def warn_not_saved(self, *keys: Key) -> None:
        """Warn that the words of these files are not saved."""
        words = [repr(word) for key in keys for word in self._by_key.get(key, ())]
        if words:
            warn_of_call(
                f"the embeddings of {', '.join(words)} are not saved, only the weights are"
            )

    @contextlib.contextmanager
    def removed(self) -> Iterator[None]:
        """Inside, the base lacks the words, so that it can be saved; a warning names them."""
        self.warn_not_saved(*self._by_key)
        with self.taken_off():
            yield

    @contextlib.contextmanager
    def taken_off(self) -> Iterator[None]:
        """Inside, the base's tables are its own: they may be replaced by others of their size."""
        by_key = self._by_key
        self._set({})
        try:
            yield
        finally:
            self._set(by_key)

    def unused(self, texts: list[str]) -> list[str]:
        """Sentences about words that appear in none of the texts."""
        has = self.base.tokenizers.has_word
        return [
            f"the word {word!r} of {kind} {name} is in none of the prompts"
            for (kind, name), words in self._by_key.items()
            for word in words
            if not any(has(word, text) for text in texts)
        ]

    def _set(self, by_key):
        if any(by_key.values()) or any(self._by_key.values()):
            for word in (word for words in self._by_key.values() for word in words):
                self.base.tokenizers.words.pop(word.lower(), None)
            _put(self.base, by_key)
        self._by_key = by_key


def _put(base, by_key: dict[Key, Words]):
    """If two words are the same, the later one acts."""
    tables = {tower: [_own_rows(base, tower)] for tower in TOWERS}
    ends = {tower: len(rows[0]) for tower, rows in tables.items()}
    for words in by_key.values():
        for word, towers in words.items():
            ids = []
            for tower in TOWERS:
                rows = towers.get(tower)
                count = 0 if rows is None else len(rows)
                ids.append(None if rows is None else range(ends[tower], ends[tower] + count))
                ends[tower] += count
                tables[tower] += [] if rows is None else [rows]
            base.tokenizers.words[word.lower()] = tuple(ids)
    for tower, parts in tables.items():
        where = getattr(base.model, TOWERS[tower]).embeddings.token_embedding.embedding
        dtype = where.get_value().dtype
        where.set_value(jnp.concatenate([jnp.asarray(each, dtype) for each in parts]))


def _own_rows(base, tower: str):
    """The table's rows without those of the words."""
    return _table(base, tower)[: getattr(base.model, TOWERS[tower]).config["vocab_size"]]


def _table(base, tower: str):
    return getattr(base.model, TOWERS[tower]).embeddings.token_embedding.embedding.get_value()


def _in_vocabulary(tokenizers, word: str) -> bool:
    both = (tokenizers.tokenizer, tokenizers.tokenizer_2)
    entry = f"{word.lower()}</w>"
    return any(each.backend_tokenizer.token_to_id(entry) is not None for each in both)


def _warn_of_missing_towers(where: str, words: Words, remedy: str = ""):
    for word, towers in words.items():
        missing = ", ".join(TOWERS[tower] for tower in TOWERS if tower not in towers)
        if missing:
            warn_of_call(
                f"{where}: has no embedding of the word {word!r} for {missing}, which reads it as "
                f"plain text{remedy}"
            )


def _warn_of_duplicates(by_key: Mapping[Key, Words], key: Key, words: Words):
    """Warn of words that earlier files have as well."""
    for earlier, theirs in by_key.items():
        for word in theirs:
            if word.lower() in map(str.lower, words):
                warn_of_call(
                    f"the word {word!r} of {' '.join(earlier)} is also one of {' '.join(key)}, "
                    "which is used"
                )
