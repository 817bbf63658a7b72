"""Reads all text files in one place: prompts, manifests, JSON, tables, tokenizers.

    text = read_text(path)        lines = read_lines(path)        value = read_json(path)
    for number, value in parse_json_lines(text, path): ...

UTF-8 with or without a byte order mark, and UTF-16 and UTF-32 with one. Marks are removed, also at
the beginning of later lines, where files were concatenated. A line ends only at \\n, \\r\\n or \\r:
U+2028, U+0085, \\v and \\f may be part of a prompt.
"""

import codecs
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# The longer mark first: UTF-32's begins with UTF-16's.
MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
LINE_END = re.compile(r"\r\n|\n|\r")
MARK_AT_START = re.compile("(^|[\r\n])\ufeff+")
HALF_PAIR = re.compile(r"\\u[dD][89a-fA-F]")


class TextError(ValueError):
    """A file that is not text, or not what it should hold; the message names the line."""


def read_text(path: str | Path) -> str:
    """The whole text. TextError if it cannot be decoded; OSError if it cannot be read."""
    return decode_text(Path(path).read_bytes(), path)


def read_lines(path: str | Path) -> list[str]:
    """The lines, without line ends."""
    return split_lines(read_text(path))


def whole_lines(path: str | Path) -> list[str]:
    """The lines of a log, except one without a line end: a crash may have cut it short."""
    text = read_text(path)
    return split_lines(text) if text.endswith(("\n", "\r")) else split_lines(text)[:-1]


def read_json(path: str | Path) -> Any:
    """The contents of a JSON file; TextError with the line if it is invalid."""
    return parse_json(read_text(path), path)


def decode_text(raw: bytes, name: str | Path) -> str:
    """The text of a file's bytes; ``name`` is the file's name, for the message."""
    coding = "utf-8"
    for mark, of_mark in MARKS:
        if raw.startswith(mark):
            raw, coding = raw[len(mark) :], of_mark
            break
    try:
        text = raw.decode(coding)
    except UnicodeDecodeError as error:
        if coding == "utf-8" and (wide := _wide(raw)):
            raise TextError(f"{name}: saved as {wide}: save it as UTF-8") from None
        if coding == "utf-8" and b"\0" in raw:
            raise TextError(
                f"{name}: holds NUL bytes: no text, or saved as UTF-16 or UTF-32: save it as UTF-8"
            ) from None
        # Everything before the fault was decodable.
        line = len(LINE_END.findall(raw[: error.start].decode(coding))) + 1
        said = coding.upper().removesuffix("-LE").removesuffix("-BE")
        wrong = raw[error.start : error.end][:4].hex(" ")
        raise TextError(
            f"{name} line {line}: not {said} text (bytes {wrong}): save it as UTF-8"
        ) from None
    if "\0" in text:
        if coding == "utf-8" and (wide := _wide(raw)):
            raise TextError(f"{name}: saved as {wide}: save it as UTF-8")
        line = len(LINE_END.findall(text, 0, text.index("\0"))) + 1
        raise TextError(f"{name} line {line}: a NUL character, so this is not a text file")
    # One search in the whole text is cheaper than one per line.
    return MARK_AT_START.sub(r"\1", text) if "\ufeff" in text else text


def split_lines(text: str) -> list[str]:
    """Split at \\n, \\r\\n and \\r; no empty line after the last end."""
    lines = LINE_END.split(text)
    return lines[:-1] if not lines[-1] else lines


def parse_json(text: str, name: str | Path, line: int | None = None) -> Any:
    """The value of a JSON text.

    Args:
        name: of the file. line: of the text within the file; None: the text is the whole file.
    """
    try:
        value = json.loads(text, object_pairs_hook=_no_key_twice)
        if HALF_PAIR.search(text):
            _check_surrogates(value)
    except json.JSONDecodeError as error:
        at = line if line is not None else error.lineno
        raise TextError(f"{_at(name, at)}: not JSON ({error.msg}, column {error.colno})") from None
    except RecursionError:
        raise TextError(f"{_at(name, line)}: not JSON that can be read (nested too deep)") from None
    except ValueError as error:
        said = str(error)[:200]
        raise TextError(f"{_at(name, line)}: not JSON that can be read ({said})") from None
    return value


def parse_json_lines(text: str, name: str | Path) -> Iterator[tuple[int, Any]]:
    """(line number, value) of every line that is not blank, in order."""
    for number, line in enumerate(split_lines(text), 1):
        if line.strip():
            yield number, parse_json(line, name, number)


def _no_key_twice(pairs) -> dict:
    value = dict(pairs)
    if len(value) < len(pairs):
        twice = next(key for i, (key, _) in enumerate(pairs) if key in dict(pairs[:i]))
        raise ValueError(f"the key {twice!r} is there twice; leave one of them")
    return value


def _at(name, line: int | None) -> str:
    return f"{name} line {line}" if line is not None else str(name)


def _check_surrogates(value):
    # JSON can encode half of a character, "\\ud83d"; no tokenizer and no file accepts it.
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = error.object[error.start]
        raise ValueError(f"half of a character, \\u{ord(half):04x}; write it whole") from None


def _wide(raw: bytes) -> str:
    """UTF-16 or UTF-32 if it is one without its mark, judged by which bytes are 0."""
    start = raw[:4096]
    zeros = [sum(byte == 0 for byte in start[i::4]) / max(1, len(start[i::4])) for i in range(4)]
    if min(zeros[1:3]) > 0.9 and max(zeros[0], zeros[3]) > 0.9:
        return "UTF-32"
    pairs = (zeros[0] + zeros[2]) / 2, (zeros[1] + zeros[3]) / 2
    # Every second byte is 0, and none of the others.
    return "UTF-16" if max(pairs) > 0.4 and min(pairs) < 0.1 else ""
