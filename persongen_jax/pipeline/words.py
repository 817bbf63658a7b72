"""Words that a file defines with its own embeddings (Textual Inversion, arXiv 2208.01618).

LoRA trainers bundle words that were trained together with the LoRA: ``bundle_emb.WORD.clip_l`` and
``.clip_g``, one row per token of the word. The rows are appended to the text encoders' tables, the
word is added to the tokenizers.
"""

import contextlib
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from persongen_jax.weights.errors import UnsupportedAdapter
from persongen_jax.weights.formats.lora.reading import read_embeddings
from persongen_jax.weights.formats.sdxl.loading import SDXLBase

TOWERS = {"clip_l": "text_encoder", "clip_g": "text_encoder_2"}  # of SDXL's two encoders

Words = dict[str, dict[str, np.ndarray]]  # word to {tower: [n, width]}


def read_words(path: str | Path, base: SDXLBase) -> Words:
    """The words bundled with a LoRA; usually {}.

    Raises:
        UnsupportedAdapter: embeddings whose width differs from the base's, or that are not finite.
    """
    words = {}
    for word, towers in read_embeddings(path).items():
        own = {t: np.atleast_2d(rows) for t, rows in towers.items() if t in TOWERS}
        for tower, rows in own.items():
            _check(path, word, tower, rows, _table(base, tower).shape[1])
        without = ", ".join(sorted(set(towers) - set(TOWERS)))
        if without:
            _warn(f"{path}: {without} of the word {word!r} (added after a text encoder) is unused")
        missing = ", ".join(TOWERS[tower] for tower in TOWERS if tower not in own)
        if missing and own:
            _warn(
                f"{path}: has no embedding of the word {word!r} for {missing}, which reads it as "
                "plain text"
            )
        if own:
            words[word] = own
    return words


class AddedWords:
    """The words that a base's tokenizers and text encoders have in addition to their vocabulary."""

    def __init__(self, base: SDXLBase):
        self.base, self._by_name = base, {}

    def add(self, name: str, words: Words) -> None:
        """Add the words of the LoRA of this name, replacing its earlier ones."""
        self._set({**self._without({name}), name: words})

    def drop(self, names: Iterable[str]) -> None:
        """Remove the words of these LoRAs."""
        self._set(self._without(set(names)))

    def _without(self, names: set) -> dict[str, Words]:
        return {n: words for n, words in self._by_name.items() if n not in names}

    def warn_not_saved(self, *names: str) -> None:
        """Warn that the words of these LoRAs are not saved."""
        words = [repr(word) for name in names for word in self._by_name.get(name, ())]
        if words:
            _warn(f"the embeddings of {', '.join(words)} are not saved, only the weights are")

    @contextlib.contextmanager
    def removed(self) -> Iterator[None]:
        """Inside, the base lacks the words, so that it can be saved; a warning names them."""
        by_name = self._by_name
        self.warn_not_saved(*by_name)
        self._set({})
        try:
            yield
        finally:
            self._set(by_name)

    def unused(self, texts: list[str]) -> list[str]:
        """Sentences about words that appear in none of the texts."""
        has = self.base.tokenizers.has_word
        return [
            f"the word {word!r} of LoRA {name} is in none of the prompts"
            for name, words in self._by_name.items()
            for word in words
            if not any(has(word, text) for text in texts)
        ]

    def _set(self, by_name):
        if any(by_name.values()) or any(self._by_name.values()):
            _put(self.base, by_name)
        self._by_name = by_name


def _put(base, by_name: dict[str, Words]):
    """If two words are the same, the later one acts."""
    base.tokenizers.words.clear()
    tables = {tower: [_own_rows(base, tower)] for tower in TOWERS}
    ends = {tower: len(rows[0]) for tower, rows in tables.items()}
    for name, words in by_name.items():
        for word, towers in words.items():
            _warn_of_duplicates(by_name, name, word)
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


def _check(path, word, tower, rows, width):
    if rows.ndim != 2 or rows.shape[1] != width or not len(rows):
        raise UnsupportedAdapter(
            f"{path}: the embedding of the word {word!r} for {tower} has shape {list(rows.shape)}, "
            f"but {TOWERS[tower]} has width {width}. Check that the LoRA is for SDXL."
        )
    if not np.isfinite(np.asarray(rows, np.float32)).all():
        raise UnsupportedAdapter(
            f"{path}: the embedding of the word {word!r} for {tower} is not finite. Use an "
            "earlier checkpoint of its training."
        )


def _warn_of_duplicates(by_name, name, word):
    later = list(by_name)[list(by_name).index(name) + 1 :]
    for other in later:
        if word.lower() in map(str.lower, by_name[other]):
            _warn(f"the word {word!r} of LoRA {name} is also one of LoRA {other}, which is used")


def _warn(message: str):
    warnings.warn(message, stacklevel=5)
