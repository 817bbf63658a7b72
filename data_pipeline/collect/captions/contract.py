"""What a model is asked for, and whether an answer may be used.

The thesis (section 4.3) has a vision-language model write a caption with a class word and divide it
into parts without losing anything. Here one answer holds all of it as a JSON object.
"""

import json
import re
from dataclasses import dataclass
from typing import Any

from data_pipeline.collect.captions.base import View
from data_pipeline.records.captions import CLASS_WORDS

PLURALS = {"people": "person", "persons": "person", "men": "man", "women": "woman"}
PLURALS |= {"boys": "boy", "girls": "girl", "children": "child", "babies": "baby"}
KEYS = ("class_word", "caption", "general", "background", "body")
PROMPT = f"""Describe the person in this photograph for training a text-to-image model.
Answer with one JSON object and nothing else. Its keys, all of them texts:
"class_word": what the person is, one of {", ".join(CLASS_WORDS)};
"caption": one or two sentences on all that is seen, in which the class word occurs exactly once;
"general": the part of the caption on the person, the expression, the gaze and the framing;
"background": the part on all that is not the person, with places, such as "on the far right";
"body": the part on clothes, pose and things held.
Rules: never name anybody. Hair and age may be said, other traits of the face may not. Together the
three parts say everything that the caption says, and nothing else; a part may be empty."""
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "class_word": {"type": "string", "enum": list(CLASS_WORDS)},
        **{name: {"type": "string"} for name in KEYS[1:]},
    },
    "required": list(KEYS),
    "additionalProperties": False,
}
# Words without content, which a part need not repeat.
STOP = frozenset(
    "a an the and or but of in on at to by for with from into over under up down out off as is are "
    "was were be been being has have had he she it they his her its their him them this that these "
    "those there which who whose while where near very also both one some can could may there's "
    "it's photo photograph picture image shows showing seen visible".split()
)


class Unusable(ValueError):
    """An answer that breaks the contract; the message says how."""


@dataclass(frozen=True)
class Answer:
    """A model's answer that keeps the contract. coverage: see ``covered``."""

    class_word: str
    caption: str
    general: str
    background: str
    body: str
    coverage: float


def read_answer(text: str, view: View, trigger_word: str, least: float) -> Answer:
    """The answer's texts.

    Args:
        least: coverage that the parts need.

    Raises:
        Unusable: no JSON object with all keys, another class word or none in the caption, a name,
            the trigger word, or parts that lose too much.
    """
    texts = _texts(text)
    word = texts["class_word"].lower()
    word = PLURALS.get(word, word)
    if word not in CLASS_WORDS:
        raise Unusable(f"class word {word!r} is none of {', '.join(CLASS_WORDS)}")
    count = len(_occurrences(texts["caption"], word))
    if count != 1:
        raise Unusable(f"class word {word!r} occurs {count} times in the caption")
    everything = " ".join(texts[name] for name in KEYS[1:])
    if _occurrences(everything, trigger_word):
        raise Unusable(f"the trigger word {trigger_word!r} occurs")
    named = [name for name in _name_words(view.identity) if _occurrences(everything, name)]
    if named:
        raise Unusable("the person's name occurs")  # which is not repeated in reports
    share = covered(texts["caption"], [texts[name] for name in KEYS[2:]])
    if share < least:
        raise Unusable(f"the parts hold {share:.2f} of the caption's words, less than {least:g}")
    parts = texts["general"], texts["background"], texts["body"]
    return Answer(word, texts["caption"], *parts, coverage=round(share, 3))


def covered(caption: str, parts: list[str]) -> float:
    """Share of the caption's content words, each once, that occur in the union of its parts."""
    wanted = content_words(caption)
    return len(wanted & content_words(" ".join(parts))) / len(wanted) if wanted else 1.0


def content_words(text: str) -> set[str]:
    """Words that carry content, lower case, a plural's s removed."""
    words = re.findall(r"[^\W_]+(?:['’-][^\W_]+)*", text.lower())
    return {w.removesuffix("s") if len(w) > 3 else w for w in words if w not in STOP}


def mark(caption: str, class_word: str, trigger_word: str) -> str:
    """The caption with the trigger word after the class word."""
    place = _occurrences(caption, class_word)[0]
    return f"{caption[: place.end()]} {trigger_word}{caption[place.end() :]}"


def _texts(text: str) -> dict[str, str]:
    start, end = text.find("{"), text.rfind("}")  # models like to put words around it
    try:
        found = json.loads(text[start : end + 1]) if start >= 0 else None
    except ValueError as error:
        raise Unusable(f"not JSON ({error})") from None
    if not isinstance(found, dict):
        raise Unusable("no JSON object")
    missing = [name for name in KEYS if not isinstance(found.get(name), str)]
    if missing:
        raise Unusable(f"without the text {', '.join(missing)}")
    texts = {name: " ".join(found[name].split()) for name in KEYS}
    if not texts["caption"]:
        raise Unusable("an empty caption")
    return texts


def _occurrences(text: str, word: str) -> list[re.Match]:
    # Not a part of a compound or of somebody's possession: man-made, a woman's hat.
    pattern = rf"(?<![\w-]){re.escape(word)}(?![\w'’-])"
    return list(re.finditer(pattern, text, re.IGNORECASE))


def _name_words(identity: str) -> list[str]:
    """The words of a name that are not also plain words of a caption, such as numbers are."""
    words = re.findall(r"[^\W\d_]{3,}", identity)
    return [w for w in words if w.lower() not in {*CLASS_WORDS, *PLURALS, *STOP}]
