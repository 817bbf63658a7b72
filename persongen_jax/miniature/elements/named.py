"""What a prompt in the miniature's vocabulary asks for (data_pipeline/drawing/captions.py)."""

import re
from dataclasses import dataclass

from data_pipeline.drawing.captions import DOING, MOODS
from data_pipeline.drawing.pictures import CLOTHES, COLOUR_NAMES, HATS, OBJECTS, SCENES

PLACE_WORDS = {name: name for name in SCENES} | {
    "mountains": "mountains?",
    "beach": "beach|sea",
    "snowy night": "snow|snowy",
    "space": "space(?! suit)",
}
OBJECT_WORDS = {name: name for pair in OBJECTS.values() for name in pair if name != "none"} | {
    "palm trees": "palm trees?",
    "camels": "camels?",
    "portrait": "portrait(?! of)",
    "shelf": "shelf|bookshelf|books",
    "flowers": "flowers?",
}
MOOD_OF = {phrase: name for name, phrases in MOODS.items() for phrase in phrases}


@dataclass(frozen=True)
class Named:
    """The elements that a prompt names; "" for what it does not.

    expression: of EXPRESSIONS. place: of SCENES. objects: of OBJECTS. clothes, hat: kinds. colour:
    of the clothes. doing: of POSES.
    """

    expression: str = ""
    place: str = ""
    objects: frozenset[str] = frozenset()
    clothes: str = ""
    colour: str = ""
    hat: str = ""
    doing: str = ""


def read_prompt(text: str) -> Named:
    """What ``text`` names; another vocabulary's words name nothing."""
    text = text.lower()
    mood = _first(MOOD_OF, text)
    colour, clothes = _coloured(CLOTHES, text)
    return Named(
        expression=MOOD_OF.get(mood, ""),
        place=next((name for name, words in PLACE_WORDS.items() if _has(words, text)), ""),
        objects=frozenset(name for name, words in OBJECT_WORDS.items() if _has(words, text)),
        clothes=clothes,
        colour=colour,
        hat=_coloured(HATS[1:], text)[1],
        doing=next((n for n, words in DOING.items() if words and words.strip(", ") in text), ""),
    )


def _has(words: str, text: str) -> bool:
    return re.search(rf"\b({words})\b", text) is not None


def _coloured(kinds: tuple[str, ...], text: str) -> tuple[str, str]:
    """(colour, kind) of the first of ``kinds`` in the text, "" each for none."""
    names = "|".join(sorted(kinds, key=len, reverse=True))
    found = re.search(rf"\b(?:({'|'.join(COLOUR_NAMES)}) )?({names})\b", text)
    return (found[1] or "", found[2]) if found else ("", "")


def _first(options, text: str) -> str:
    """The option that is in the text; longer ones count before those that are in them."""
    words = sorted(options, key=len, reverse=True)
    return next((option for option in words if _has(re.escape(option), text)), "")
