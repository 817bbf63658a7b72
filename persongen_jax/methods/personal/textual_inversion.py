"""Textual Inversion: a person becomes a word (Gal et al., arXiv 2208.01618), in both text towers.

Only the word's own rows of the two tables of embeddings are trained. Pivotal tuning (Roich et al.,
arXiv 2106.05744, for diffusion models as in diffusers' advanced trainer) trains them with a LoRA.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from ml_collections import ConfigDict

from persongen_jax.methods.base import Model, Parts, Words
from persongen_jax.methods.personal.base import Personal
from persongen_jax.methods.personal.embedding_rules import keep_spread, stop_after
from persongen_jax.methods.personal.lora import TOWERS, Lora
from persongen_jax.methods.start import find_origin, load_remaining
from persongen_jax.models.layers import FIRST_ADDED, Embed

ROWS = r"text_encoder(_2)?/embeddings/token_embedding/added"


class TextualInversion(Personal):
    """The rows of config.token in both towers, [num_vectors, width] each, group "embeddings"."""

    token_instead = True
    groups: tuple[tuple[str, str], ...] = ((ROWS, "embeddings"),)
    word = ""

    def attach(self, parts: Parts, config: ConfigDict, rngs: nnx.Rngs) -> None:
        """Reads config.token, num_vectors, initializer, and start_from: an earlier run of it.

        Raises:
            ValueError: no token, or one of several words.
        """
        origin = find_origin(config)
        if origin.file:
            raise ValueError(
                f"config.start_from={origin.source}: Textual Inversion starts from a run of its "
                "own, or from config.initializer; leave it out"
            )
        self._add_word(parts, config, rngs)
        load_remaining(parts.model, origin)

    def detach(self, parts: Parts) -> None:
        self.take_words(parts)
        super().detach(parts)

    def words_of(self, model: Model) -> Words:
        tables = zip(("clip_l", "clip_g"), _tables(model), strict=True)
        rows = {
            tower: np.asarray(table.added.get_value())
            for tower, table in tables
            if table.added is not None
        }
        return {self.word: rows} if rows else {}

    def take_words(self, parts: Parts) -> Words:
        words = self.words_of(parts.model)
        for table in _tables(parts.model):
            table.added = nnx.data(None)
        for word in words:
            parts.tokenizers.words.pop(word, None)
        return words

    def _add_word(self, parts: Parts, config: ConfigDict, rngs: nnx.Rngs) -> None:
        model: Model = parts.model
        word, count = config.token, config.num_vectors
        if not word or word.split() != [word]:
            raise ValueError(f"config.token={word!r}: give the one word to learn, such as <me>")
        room = parts.tokenizers.max_length - 2
        if count > room:
            raise ValueError(f"config.num_vectors={count}: a prompt has {room} tokens")
        self.word = word.lower()  # as tokenizers match it
        if self.word in parts.tokenizers.words:
            raise ValueError(f"config.token={word!r}: a word of this name is loaded already")
        starts = parts.tokenizers.ids(config.initializer)
        for table, start in zip(_tables(model), starts, strict=True):
            table.added = nnx.data(nnx.Param(first_rows(table, start, count, rngs)))
        ids = range(FIRST_ADDED, FIRST_ADDED + count)
        parts.tokenizers.words[self.word] = (ids, ids)

    def update_rules(
        self, model: Model, config: ConfigDict
    ) -> dict[str, optax.GradientTransformation]:
        """Reads config.embedding_norm and embedding_steps."""
        rules = []
        if config.embedding_norm:
            spreads = {}
            for name in TOWERS:
                path = f"{name}/embeddings/token_embedding"
                table = getattr(model, name).embeddings.token_embedding.embedding.get_value()
                spreads[f"{path}/added"] = 1.0 if is_shape(table) else float(spread(table))
            rules.append(keep_spread(spreads, config.embedding_norm))
        if config.embedding_steps:
            rules.append(stop_after(config.embedding_steps))
        return {"embeddings": optax.chain(*rules)} if rules else {}


class PivotalTuning(TextualInversion, Lora):
    """The word's rows and a LoRA on the UNet, trained together."""

    def attach(self, parts: Parts, config: ConfigDict, rngs: nnx.Rngs) -> None:
        """Reads what LoRA and Textual Inversion read."""
        origin = find_origin(config)
        if origin.file:
            raise ValueError(
                f"config.start_from={origin.source}: pivotal tuning starts from a run of its own"
            )
        self._add(parts.model, config, rngs)
        self._add_word(parts, config, rngs)
        self.groups = (*self.groups, (ROWS, "embeddings"))
        load_remaining(parts.model, origin)


def _tables(model: Model) -> list[Embed]:
    """Both towers' tables of embeddings."""
    return [getattr(model, name).embeddings.token_embedding for name in TOWERS]


def first_rows(table: Embed, ids: list[int], count: int, rngs: nnx.Rngs) -> jax.Array:
    """[count, d] float32: the initialiser's rows, repeated or cut; without one, drawn with the
    table's standard deviation."""
    known = table.embedding.get_value()
    if not ids:
        return spread(known) * jax.random.normal(rngs.params(), (count, known.shape[1]))
    return known[np.resize(np.array(ids), count)].astype(jnp.float32)


def spread(table: jax.Array) -> jax.Array:
    """The standard deviation of a table's numbers."""
    return table.astype(jnp.float32).std(ddof=1)


def is_shape(array: Any) -> bool:
    """Whether it has no values: when only shapes are computed (systems/abstract.py)."""
    return isinstance(array, jax.ShapeDtypeStruct)
