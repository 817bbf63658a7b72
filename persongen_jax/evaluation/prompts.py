"""Validation prompts: the thesis' four, PhotoMaker's forty, or those of a JSON file.

The file holds a list of {"general": ..., "background": ..., "body": ...}; the last two are
optional. "general" has the trigger word after the class word. The texts may contain {word}, the
person's class word, and the matching {he}, {his}, {him} ({He}, {His}, {Him} to start a sentence):

    {"general": "a photo of a {word} img, {his} face is happy",
     "background": "there is a beach behind {him}", "body": "{he} is wearing a red coat"}
"""

import re
from collections.abc import Collection
from dataclasses import dataclass

from data_pipeline.prompts import PromptError, has_trigger, join_parts, split_at_trigger
from data_pipeline.records.schema import Record
from data_pipeline.text_files import read_json
from persongen_jax.evaluation.prompt_sets import PROMPT_SETS, TRIGGER

PARTS = ("general", "background", "body")

MALE = frozenset("man boy gentleman guy businessman father brother son king prince".split())
FEMALE = frozenset("woman girl lady businesswoman mother sister daughter queen princess".split())


@dataclass(frozen=True)
class ValidationPrompt:
    """What an image should show, in three parts; "" for a part without content."""

    general: str
    background: str = ""
    body: str = ""

    def fill(self, word: str) -> "ValidationPrompt":
        """The prompt for a person whose class word is ``word``.

        PromptError for an unknown name in braces.
        """
        names = pronouns_for(word)
        try:
            return ValidationPrompt(*(getattr(self, part).format(**names) for part in PARTS))
        except (KeyError, IndexError, ValueError) as error:
            raise PromptError(
                f'the prompt "{join_parts(self.general, self.background, self.body)}" cannot be '
                f"filled in ({error!r}); braces may contain {', '.join(names)}"
            ) from error

    def whole(self, trigger_word: str) -> str:
        """All parts as one text without the trigger word, for CLIP-T."""
        general = "".join(split_at_trigger(self.general, trigger_word))
        return join_parts(general, self.background, self.body)

    def place(self, streams: Collection[str]) -> tuple[str, dict[str, str]]:
        """(prompt, parts by stream): a part without a stream of its own is joined to the prompt."""
        parts = {name: getattr(self, name) for name in PARTS[1:]}
        apart = {name: text for name, text in parts.items() if name in streams}
        joined = [text for name, text in parts.items() if name not in streams]
        return join_parts(self.general, *joined), apart


def pronouns_for(word: str) -> dict[str, str]:
    """{word}, {he}, {his}, {him} and their capitals for a class word.

    A word without a gender is repeated: "the person", "the person's", "the person".
    """
    if word.lower() in MALE:
        pronouns = ("he", "his", "him")
    elif word.lower() in FEMALE:
        pronouns = ("she", "her", "her")
    else:
        pronouns = (f"the {word}", f"the {word}'s", f"the {word}")
    names = dict(zip(("he", "his", "him"), pronouns, strict=True))
    capitals = {name.capitalize(): text[0].upper() + text[1:] for name, text in names.items()}
    return {"word": word, **names, **capitals}


def class_word_of(record: Record, trigger_word: str, marked: bool = True) -> str:
    """A record's class word: its own if it has one, else the word before the trigger.

    If captions need no trigger word (``marked=False``), "person" if the record has neither.
    """
    word = getattr(record, "class_word", None)
    if not word and not marked and not has_trigger(record.caption, trigger_word):
        return "person"
    return word or split_at_trigger(record.caption, trigger_word)[0].split()[-1]


def open_prompts(spec: str, trigger_word: str = TRIGGER) -> list[ValidationPrompt]:
    """The prompts that ``spec`` names: one of prompt_sets.PROMPT_SETS or a JSON file.

    Raises:
        ValueError: no such file, an invalid structure, or a prompt without its trigger word.
    """
    if spec in PROMPT_SETS:
        return [
            ValidationPrompt(_with_trigger(general, trigger_word), background, body)
            for general, background, body in PROMPT_SETS[spec]
        ]
    prompts = [_prompt(spec, i, entry) for i, entry in enumerate(_read_list(spec), 1)]
    for prompt in prompts:
        split_at_trigger(prompt.fill("person").general, trigger_word)
    return prompts


def _with_trigger(text: str, trigger_word: str) -> str:
    return re.sub(rf"\b{TRIGGER}\b", lambda _: trigger_word, text, count=1)


def _read_list(spec: str) -> list:
    try:
        entries = read_json(spec)
    except FileNotFoundError:
        raise ValueError(
            f"validation_prompts={spec!r}: no such file; give {' or '.join(PROMPT_SETS)}, or a "
            "JSON file"
        ) from None
    except OSError as error:
        raise ValueError(f"{spec}: cannot be read ({error})") from error
    if not isinstance(entries, list) or not entries:
        raise ValueError(f'{spec}: give a non-empty list of {{"general": ..., ...}}')
    return entries


def _prompt(spec: str, number: int, entry) -> ValidationPrompt:
    texts = isinstance(entry, dict) and all(isinstance(text, str) for text in entry.values())
    if not texts or not entry.get("general") or set(entry) - set(PARTS):
        raise ValueError(
            f"{spec}: prompt {number} is {entry!r}; texts called {', '.join(PARTS)} are needed, "
            "the last two may be left out"
        )
    return ValidationPrompt(**entry)
