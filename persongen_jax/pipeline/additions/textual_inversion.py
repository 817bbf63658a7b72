"""The pipeline's words from embedding files (Textual Inversion): load, unload."""

import abc
from collections.abc import Mapping, Sequence

from persongen_jax.pipeline import checks
from persongen_jax.pipeline.words import (
    EMBEDDING,
    AddedWords,
    name_of,
    read_embedding_words,
)
from persongen_jax.weights.formats.embeddings.reading import Files
from persongen_jax.weights.formats.sdxl.loading import SDXLBase


class WithEmbeddings(abc.ABC):
    """A pipeline's words that embedding files define.

    Attributes:
        words: the words of all loaded files, LoRA's included.
    """

    base: SDXLBase
    words: AddedWords

    @abc.abstractmethod
    def _place(self) -> None:
        """Place every array of the model on the devices."""

    def load_textual_inversion(
        self, path: Files, token: str | Sequence[str] = "", name: str = ""
    ) -> tuple[str, ...]:
        """Load words with embeddings of their own; then use them in prompts, negative ones too.

        All public forms are read: diffusers', AUTOMATIC1111's, kohya's, pivotal tuning's and
        cog-sdxl's (docs/formats.md). A word stands for all of its vectors. A tower without an
        embedding reads the word as plain text, with a warning.

        Args:
            path: the file; diffusers' folder or one of its two files; a list of files that belong
                together; or {"clip_l": path, "clip_g": path} where a file does not say its tower.
            token: the word, if not the file's own; a list gives each vector a word of its own.
            name: the file's name from then on; by default its path. One of the same name is
                replaced, with a warning.

        Returns:
            The words.

        Raises:
            WeightsError: a file that does not exist, cannot be read, is of another kind or for
                another base; loaded words do not change.
        """
        checks.check_kinds(str, "a name", name=name)
        several = list(path.values()) if isinstance(path, Mapping) else path
        for each in several if isinstance(several, (list, tuple)) else [several]:
            checks.check_path("path", each)
        if isinstance(token, (list, tuple)):
            checks.as_texts("token", token)
        else:
            checks.check_text("token", token)
        words = read_embedding_words(path, self.base, token)
        name = name or name_of(path)
        if name in self.words.of(EMBEDDING):
            checks.warn_of_call(
                f"embedding {name}: replaces the one of that name; give name= to keep both"
            )
        self.words.add(name, words, EMBEDDING)
        self._place()
        return tuple(words)

    def unload_textual_inversion(self, name: str = "") -> None:
        """Remove the words of an embedding file, by its name or by one of its words; "": of all.

        Raises:
            ValueError: no file has this name or word.
        """
        loaded = self.words.of(EMBEDDING)
        names = [
            own
            for own, words in loaded.items()
            if name in ("", own) or name.lower() in map(str.lower, words)
        ]
        if name and not names:
            words = sorted(word for own in loaded.values() for word in own)
            raise ValueError(
                f"no embedding {name!r} is loaded; loaded: {sorted(loaded)} with the words {words}"
            )
        self.words.drop(names, EMBEDDING)
        self._place()
