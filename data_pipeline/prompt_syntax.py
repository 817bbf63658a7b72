"""Finds prompt syntax of other programs (weights and commands) that is plain text here.

It recognises the syntax of web interfaces and compel, to warn users who expect it to work. Every
pattern is linear in the text.
"""

import re
from collections.abc import Iterator

_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)"
_DECIMAL = r"[-+]?(?:\d+\.\d*|\.\d+)"
SYNTAX = (
    # (a hat:1.3), but neither (ratio 16:9) nor (10:30); ((a hat)), (a hat)1.3, (a hat)++, hat++
    ("a weight", re.compile(rf"\([^()]*(?:[^\d\s(]\s*:\s*{_NUMBER}|:\s*{_DECIMAL})\s*\)")),
    ("a weight", re.compile(rf"\)\s*(?:,[^()]*)?:\s*{_NUMBER}\s*\)")),
    ("a weight", re.compile(r"\(\([^()]+\)\)?")),
    ("a weight", re.compile(r"\([^()]+\)(?:\d*\.\d+|[-+]+(?!\w))")),
    ("a weight", re.compile(r"(?<=\w\w)(?:\+{2,}(?!\w)|-{2,}(?=[\s,.]|$))")),  # no C++
    ("a weight or a schedule", re.compile(r"\[[^\[\]]+\]")),
    ("a command", re.compile(r"\b(?:BREAK|ADDCOMM|ADDROW|ADDCOL|ADDBASE|COUPLE)\b|\bMASK\(")),
    ("a command", re.compile(r"\bAND\b")),
    ("a command", re.compile(r"\.(?:swap|blend|and)\(")),
    ("a LoRA", re.compile(r"<(?:lora|lyco|hypernet):[^<>]*>", re.IGNORECASE)),
    ("an embedding", re.compile(r"\bembedding:\S+", re.IGNORECASE)),
    ("a wildcard", re.compile(r"\{[^{}]*\|[^{}]*\}|(?<!\w)__[\w/*.-]+__(?!\w)")),
)
REMEDIES = {
    "a LoRA": "load it by load_lora, on the command line by --lora FILE@WEIGHT",
    "an embedding": "load it by load_textual_inversion, on the command line by --embedding FILE, "
    "and write its word alone",
}
_WIDE = str.maketrans("（）：［］", "():[]")  # as typed on Chinese and Japanese keyboards


def plain_syntax(text: str) -> Iterator[str]:
    """One sentence per part of a prompt that other programs would read as weights or commands."""
    text, told = text.translate(_WIDE), set()
    for meaning, pattern in SYNTAX:
        found = pattern.search(text)
        if found is None or meaning in told:
            continue
        if found[0] == "AND" and text == text.upper():
            continue
        told.add(meaning)
        remedy = REMEDIES.get(meaning, "weights and commands in prompts are not supported")
        quoted = _with_word(text, found)
        yield f'"{quoted}" in a prompt is read as plain text, not as {meaning}; {remedy}'


def _with_word(text: str, found: re.Match, most: int = 30) -> str:
    """The match, with the word before it if it is only signs; long ones cut in the middle."""
    start = found.start()
    if not found[0].strip("+-"):
        before = re.search(r"\w*$", text[max(0, start - most) : start])
        return (before[0] if before else "") + found[0][:most]
    return found[0] if len(found[0]) <= 3 * most else f"{found[0][:most]}…{found[0][-most:]}"


__all__ = ["plain_syntax"]


SHOWN_SYNTAX = 3  # sentences


class TextFaults:
    """What is cut from the texts of many records, or may be misread in them, for the log."""

    def __init__(self) -> None:
        self._cut: dict[str, tuple[int, tuple[str, str]]] = {}  # stream: count, the first
        self._syntax: dict[str, str] = {}  # sentence: image

    def add_syntax(self, text: str, image: str) -> None:
        for line in plain_syntax(text):
            self._syntax.setdefault(line, image)

    def add_cut(self, stream: str, image: str, cut: str) -> None:
        """``cut``: the part of a text that is not read; "" for none."""
        if cut:
            count, first = self._cut.get(stream, (0, (image, cut)))
            self._cut[stream] = count + 1, first

    def lines(self, length: int) -> list[str]:
        """A sentence per stream with texts above ``length`` tokens, and the first misread ones."""
        return [
            f"cut at the {length} tokens that are read: {count} of the "
            f"{'captions' if name == 'text' else f'texts {name!r}'}; of {image} this part is lost: "
            f'"{part}"'
            for name, (count, (image, part)) in self._cut.items()
        ] + [f"{image}: {line}" for line, image in list(self._syntax.items())[:SHOWN_SYNTAX]]
