"""Captions of one person's pictures: a token names the person, where identity methods mark a place.

"a woman img on a beach" becomes "a ohwx woman on a beach", or "a <me> on a beach" where the token
stands for the class word too, in captions as in prompts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from data_pipeline.examples.conditions import Text
from data_pipeline.examples.fields import Encoding, Example, Input
from data_pipeline.prompts import PromptError, Tokenizers, split_at_trigger
from data_pipeline.records.class_images import CLASS, REPEATS, is_class_image
from data_pipeline.records.schema import Record

# Captions that say nothing of the picture, so that a token learns what all pictures share (arXiv
# 2208.01618, section 4.1). {} is the token.
TEMPLATES = (
    "a photo of {}",
    "a picture of {}",
    "a portrait photo of {}",
    "a snapshot of {}",
    "a sharp photo of {}",
    "a simple photo of {}",
    "{} in a photo",
    "this photo shows {}",
    "a photo that somebody took of {}",
    "a colour photo of {}",
    "a natural picture of {}",
    "one more photo of {}",
)


@dataclass(frozen=True)
class Wording:
    """How captions name the person.

    Attributes:
        token: the word or words for the person; "": captions stay as they are.
        instead: the token stands for the class word as well, instead of before it.
        prompt: one caption for all of the person's pictures; "": each has its own.
        templates: captions are drawn from TEMPLATES.
        shuffle: the parts between commas come in a new order each time, after the first ``keep``.
    """

    token: str = ""
    instead: bool = False
    prompt: str = ""
    templates: bool = False
    shuffle: bool = False
    keep: int = 1

    def __post_init__(self):
        if self.templates and not self.token:
            raise ValueError(
                'config.caption_templates: templates name the person by config.token, which is ""'
            )
        if self.templates and self.prompt:
            raise ValueError(
                "config.caption_templates and config.instance_prompt both replace the captions; "
                "give one of them"
            )


class PersonalText(Text):
    """The text of :class:`Text` without a marked place: a token says who it is.

    Args:
        wording: see Wording. Class images keep their captions.
    """

    def __init__(
        self,
        tokenizers: Tokenizers,
        wording: Wording,
        *,
        trigger_word: str,
        encoding: Encoding | None = None,
    ):
        super().__init__(tokenizers, trigger_word=trigger_word, at_trigger=False, encoding=encoding)
        self.wording = wording
        self.keys = (REPEATS, CLASS)  # what ``records`` and ``caption`` read of a record
        self._unnamed: dict[str, str] = {}  # image to caption

    # ---- naming ----

    def without_trigger(self, prompt: str) -> str:
        """A caption or prompt with the token where the trigger word marks the person."""
        if not self.wording.token:
            return super().without_trigger(prompt)
        try:
            left, right = split_at_trigger(prompt, self.trigger_word)
        except PromptError:  # it is not there, or where there is no class word to name
            return super().without_trigger(prompt)
        *before, word = left.rsplit(maxsplit=1)
        named = self.wording.token
        return " ".join([*before, named if self.wording.instead else f"{named} {word}"]) + right

    def caption(self, record: Record) -> str:
        if is_class_image(record):  # whose captions name nobody
            return super().without_trigger(record.caption)
        if self.wording.prompt:
            return self.without_trigger(self.wording.prompt)
        return super().caption(record)

    # ---- drawing ----

    def inputs(self, example: Example) -> list[Input]:
        found = super().inputs(example)
        # A shuffled caption hardly comes again.
        return [each._replace(store=False) for each in found] if self.wording.shuffle else found

    def _caption_ids(self, example: Example):
        return self._ids(self.draw(example.record, example.rng), None)

    def draw(self, record: Record, rng: np.random.Generator) -> str:
        """The caption of one example."""
        wording = self.wording
        if is_class_image(record) or not self._varies:
            return self.caption(record)
        if wording.templates:
            return str(rng.choice(TEMPLATES)).format(wording.token)
        first = self.caption(record).split(",")
        kept, others = first[: wording.keep], first[wording.keep :]
        return ",".join([*kept, *(others[i] for i in rng.permutation(len(others)))])

    @property
    def _varies(self) -> bool:
        return self.wording.templates or self.wording.shuffle

    def all_inputs(self, source: Any, record: Record) -> list[Input]:
        if self.wording.templates and not is_class_image(record):
            texts: Sequence[str] = [each.format(self.wording.token) for each in TEMPLATES]
        else:
            texts = [self.caption(record)]
        return [self._input(self._ids(text, None)[0]) for text in (*texts, "")]

    # ---- before the first step ----

    def check(self, record: Record, others: int) -> None:
        super().check(record, others)
        token, text = self.wording.token, self.caption(record)
        if token and not is_class_image(record) and not self.wording.templates:
            if not self.tokenizers.has_word(token, text):
                self._unnamed.setdefault(record.image, text)

    def notes(self) -> list[str]:
        lines = super().notes()
        unnamed, self._unnamed = self._unnamed, {}
        if unnamed:
            first = next(iter(unnamed))
            lines.append(
                f"{len(unnamed)} captions name nobody: config.token={self.wording.token!r} is in "
                f"none of them, nor the trigger word {self.trigger_word!r} in its place, as in "
                f'"{unnamed[first]}" of {first}'
            )
        return lines
