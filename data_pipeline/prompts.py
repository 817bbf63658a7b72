"""Prompts: the trigger word, additional parts, and token ids from both of SDXL's tokenizers.

    split_at_trigger("a man img in a suit")     # ("a man", " in a suit")

The trigger marks where the identity enters. It directly follows the class word, as a separate word,
in any case. Invisible characters (zero-width spaces and joiners, byte order marks, soft hyphens,
marks of writing direction) often come with pasted text; around the trigger and in the class word
they are removed, because the identity is fused into the token before the trigger.
"""

import contextlib
import os
import re
import tempfile
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.text_files import parse_json, read_text, split_lines

# The files that transformers reads from a tokenizer's folder.
OWN_FILES: tuple[str, ...] = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt")
OWN_FILES += ("special_tokens_map.json", "added_tokens.json")
CLIP_MAX_LENGTH = 77  # positions, including the two end markers
# A zero-width space separates words, all others join.
SEPARATOR = "\u200b"
# Invisible without being "format" or "control" characters: joiners, fillers, variation selectors.
OTHERS_UNSEEN = frozenset(
    map(chr, (0x34F, 0x115F, 0x1160, 0x3164, 0xFFA0, *range(0xFE00, 0xFE10)))
) | frozenset(map(chr, range(0xE0100, 0xE01F0)))


# ---- The trigger word ----------------------------------------------------------------------------


class PromptError(ValueError):
    """An unusable prompt; the message quotes it and has the remedy."""


def is_invisible(character: str) -> bool:
    """Whether it is invisible and takes no room; blanks and line ends do take room."""
    kind = unicodedata.category(character)
    return (kind in ("Cf", "Cc") and not character.isspace()) or character in OTHERS_UNSEEN


def strip_invisible(text: str) -> str:
    """The text as displayed: of the invisible characters only a zero-width space leaves a blank."""
    return "".join(
        " " if c == SEPARATOR else c for c in text if c == SEPARATOR or not is_invisible(c)
    )


def split_at_trigger(prompt: str, trigger_word: str = "img") -> tuple[str, str]:
    """The text through the class word, and the text after the trigger word.

    Their concatenation is the prompt without the trigger. "imgs" does not count; case is ignored,
    because CLIP's tokenizers read lower case only. PromptError unless it appears exactly once and
    directly after a word.
    """
    parts = _split(prompt, trigger_word)
    if len(parts) == 1:
        raise PromptError(_missing_trigger_message(prompt, trigger_word))
    if len(parts) > 2:
        raise PromptError(
            f'the trigger word "{trigger_word}" appears {len(parts) - 1} times in the prompt '
            f'"{prompt}"; put it exactly once, after the class word: "a man {trigger_word} in a '
            'space suit"'
        )
    left, right = parts
    if not left:
        raise PromptError(
            f'the trigger word "{trigger_word}" opens the prompt "{prompt}"; it needs a class word '
            f'before it: "man {trigger_word}"'
        )
    if unicodedata.category(left[-1])[0] in "PS":
        raise PromptError(
            f'the trigger word "{trigger_word}" follows a "{left[-1]}" in the prompt "{prompt}"; '
            f'it must follow the class word directly: "man {trigger_word}"'
        )
    return left, right


def has_trigger(prompt: str, trigger_word: str = "img") -> bool:
    """Whether the trigger appears as a separate word."""
    return len(_split(prompt, trigger_word)) > 1


def without_trigger(prompt: str, trigger_word: str = "img") -> str:
    """The prompt without the trigger wherever it is a separate word."""
    return "".join(_split(prompt, trigger_word))


def _split(prompt: str, trigger_word: str) -> list[str]:
    """The text between triggers, without blanks before and invisible characters around them."""
    if not trigger_word or strip_invisible(trigger_word).split() != [trigger_word]:
        raise PromptError(f"trigger_word={trigger_word!r}: give one word, such as img")
    # A plain \b would fail for a trigger such as "<me>", whose ends are not word characters.
    first, *others = re.split(_pattern(trigger_word), prompt, flags=re.IGNORECASE)
    *lefts, last = [first, *map(_starts_visibly, others)]
    return [*map(_ends_visibly, lefts), last]


def _pattern(trigger_word: str) -> str:
    letter = r"[^\W\u115f\u1160\u3164\uffa0]"  # fillers are invisible, but count as letters
    return rf"(?<!{letter}){re.escape(trigger_word)}(?!{letter}|[\u0300-\u036f])"


def _starts_visibly(text: str) -> str:
    start = next((i for i, c in enumerate(text) if not is_invisible(c)), len(text))
    return text[start:]


def _ends_visibly(left: str) -> str:
    """Without blanks at the end, and without invisible characters in and after the last word."""
    end = len(left)
    while end and (left[end - 1].isspace() or is_invisible(left[end - 1])):
        end -= 1
    start = end
    while start and not left[start - 1].isspace():
        start -= 1
    return left[:start] + strip_invisible(left[start:end])


def _missing_trigger_message(prompt: str, trigger_word: str) -> str:
    example = f'"a man {trigger_word} in a space suit"'
    inside = re.search(rf"\w*{re.escape(trigger_word)}\w*", prompt, re.IGNORECASE)
    if inside:
        return (
            f'the trigger word "{trigger_word}" appears in the prompt "{prompt}" inside '
            f'"{inside[0]}", not as a separate word; put a space before and after it: {example}'
        )
    unseen = next(filter(is_invisible, prompt), None)
    if unseen and re.search(_pattern(trigger_word), strip_invisible(prompt), re.IGNORECASE):
        return (
            f'the trigger word "{trigger_word}" has an invisible character inside (such as '
            f'U+{ord(unseen):04X}) in the prompt "{prompt}"; type it again: {example}'
        )
    return (
        f'the trigger word "{trigger_word}" appears 0 times in the prompt "{prompt}"; put it '
        f"exactly once, after the class word: {example}"
    )


# ---- Parts and token ids -------------------------------------------------------------------------


def join_parts(prompt: str, *parts: str) -> str:
    """One prompt from several, sentence after sentence: for a model that reads only one."""
    for part in filter(None, map(str.strip, parts)):
        prompt = prompt.rstrip()
        stop = "" if prompt.endswith((".", ",", ";", ":", "!", "?")) else "."
        prompt = f"{prompt}{stop} {part}"
    return prompt


@dataclass(frozen=True)
class Tokenizers:
    """SDXL's two CLIP tokenizers; ``encode`` may be called from several threads at once.

    ``max_length`` (77 for CLIP) is the length of every id array.

    Attributes:
        words: additional words that the vocabulary lacks: word to its ids in tokenizer and
            tokenizer_2; None: there it is ordinary text. Matched in any case if separate from
            letters and digits. Whoever adds one must also add the ids' embeddings to the model.
    """

    tokenizer: Any
    tokenizer_2: Any
    words: dict[str, tuple] = field(default_factory=dict, compare=False)

    def __post_init__(self):
        for tokenizer in (self.tokenizer, self.tokenizer_2):
            # Lengths are handled here. The backend's own settings are shared by threads.
            tokenizer.backend_tokenizer.no_truncation()
            tokenizer.backend_tokenizer.no_padding()
        lengths = [_max_length(self.tokenizer), _max_length(self.tokenizer_2)]
        if lengths[0] != lengths[1]:
            raise ValueError(
                f"model_max_length is {lengths[0]} in tokenizer and {lengths[1]} in tokenizer_2; "
                "SDXL joins the two texts position by position, so they must agree"
            )

    @classmethod
    def from_pretrained(cls, base: str | Path) -> "Tokenizers":
        """Open ``<base>/tokenizer`` and ``<base>/tokenizer_2``; never uses the network."""
        return cls(_load(Path(base) / "tokenizer"), _load(Path(base) / "tokenizer_2"))

    @property
    def max_length(self) -> int:
        return _max_length(self.tokenizer)

    def encode(self, prompt: str) -> np.ndarray:
        """[2, 77] int32: row 0 from tokenizer, row 1 from tokenizer_2, each with its own padding.

        What does not fit is cut before the end-of-text token; ``cut_part`` returns that part.
        """
        ids = zip(self._both, self.ids(prompt), strict=True)
        return np.stack([_finish(tokenizer, row) for tokenizer, row in ids])

    def encode_many(self, prompts: list[str]) -> np.ndarray:
        """[n, 2, 77] int32: ``encode`` of each, on all cores.

        Raises:
            ValueError: there are additional words, which only ``encode`` knows.
        """
        if self.words:
            raise ValueError(f"encode_many knows no additional words: {', '.join(self.words)}")
        ids = [
            tokenizer.backend_tokenizer.encode_batch_fast(prompts, add_special_tokens=False)
            for tokenizer in self._both
        ]
        pairs = zip(*ids, strict=True)
        rows = [[_finish(t, x.ids) for t, x in zip(self._both, p, strict=True)] for p in pairs]
        return np.array(rows, np.int32).reshape(-1, 2, self.max_length)

    def cut_part(self, prompt: str, copies: int = 1) -> str:
        """The end of ``prompt`` that does not fit the 77 ids; '' if all of it fits.

        ``copies``: number of class tokens in the final ids; pass the prompt without trigger.
        """
        room = self.max_length - 2 - (copies - 1)
        cuts = []
        for which in (0, 1):
            tokens = list(self._tokens(which, prompt))
            cuts.append(prompt[tokens[room][1] :] if len(tokens) > room else "")
        return max(cuts, key=len)

    def has_word(self, word: str, text: str) -> bool:
        """Whether this one of ``words`` appears in the text."""
        return re.search(_apart([word]), text, re.IGNORECASE) is not None

    def is_full(self, ids: np.ndarray) -> bool:
        """Whether ids [2, n] of a prompt are full, so that its end may have been cut."""
        pads = (self.tokenizer.pad_token_id, self.tokenizer_2.pad_token_id)
        return any(row[-2] != pad for row, pad in zip(ids, pads, strict=True))

    def encode_with_trigger(
        self, prompt: str, copies: int, trigger_word: str = "img"
    ) -> tuple[np.ndarray, np.ndarray, str]:
        """PhotoMaker's input: removes the trigger and repeats the class token, ``copies`` in all.

        Returns ids [2, 77] int32, class_tokens_mask [77] bool (True at the ``copies``) and the
        prompt without its trigger word. The class token is the last one before the trigger.
        PromptError as in ``split_at_trigger``, and if the trigger is so late that a
        copy would be cut.
        """
        if copies < 1:
            raise ValueError(f"copies is {copies}; at least one is needed")
        left, right = split_at_trigger(prompt, trigger_word)
        rows, ends = [], []
        # Separately, so that a trigger of several tokens needs no vocabulary entry. CLIP splits at
        # the trigger's ends anyway: the ids equal those of the whole text.
        ids = zip(self._both, self.ids(left), self.ids(right), strict=True)
        for tokenizer, before, after in ids:
            rows.append(_finish(tokenizer, before + before[-1:] * (copies - 1) + after))
            ends.append(len(before) + copies)  # after the copies; id 0 starts the text
        if ends[0] != ends[1]:
            raise PromptError(
                f"the two tokenizers disagree about the position of the class word in the prompt "
                f'"{prompt}"; leave out unusual characters before it (SDXL\'s second tokenizer '
                'reads "!!" as two tokens, its first as one)'
            )
        if ends[0] > self.max_length - 1:  # the last position is the end-of-text token's
            raise PromptError(
                f'the trigger word "{trigger_word}" is too late in the prompt "{prompt}": of '
                f"{self.max_length} tokens, {copies} are copies of the class word, for the "
                "references; move the class word and the trigger towards the beginning"
            )
        mask = np.zeros(self.max_length, bool)
        mask[ends[0] - copies : ends[0]] = True
        return np.stack(rows), mask, left + right

    @property
    def _both(self) -> tuple:
        return self.tokenizer, self.tokenizer_2

    def ids(self, text: str) -> tuple[list[int], list[int]]:
        """The ids of a text in either vocabulary, without markers and padding, of any length."""
        first, second = ([token for token, _ in self._tokens(i, text)] for i in (0, 1))
        return first, second

    def _tokens(self, which: int, text: str) -> Iterator[tuple[int, int]]:
        """(id, its start in the text) from the first or the second tokenizer."""
        words = {w.lower(): ids[which] for w, ids in self.words.items() if ids[which] is not None}
        backend = self._both[which].backend_tokenizer
        # CLIP splits at blanks and signs, so the pieces' ids equal those of the whole.
        pieces = re.split(_apart(words), text, flags=re.IGNORECASE) if words else [text]
        start = 0
        for piece in pieces:
            if piece.lower() in words:
                yield from ((token, start) for token in words[piece.lower()])
            else:
                encoding = backend.encode(piece, add_special_tokens=False)
                for token, (first, _) in zip(encoding.ids, encoding.offsets, strict=True):
                    yield token, start + first
            start += len(piece)


def _load(folder: Path):
    if not (folder / "vocab.json").is_file() and not (folder / "tokenizer.json").is_file():
        raise FileNotFoundError(
            f"{folder}: no tokenizer there (vocab.json and merges.txt, or tokenizer.json); the "
            "base model must be a diffusers-format SDXL directory"
        )
    # transformers advises to install PyTorch, which its tokenizers do not need.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    from transformers import CLIPTokenizer

    with _plain_copy(folder) as plain:
        try:
            return CLIPTokenizer.from_pretrained(str(plain), local_files_only=True)
        except Exception as error:  # the backend raises almost anything for broken files
            said = " ".join(str(error).split())[:200]
            raise ValueError(
                f"{folder}: no tokenizer can be built of its files ({said}); copy the folder from "
                "the base again"
            ) from error


@contextlib.contextmanager
def _plain_copy(folder: Path):
    """The folder, or while it is being opened a copy whose texts are plain UTF-8.

    transformers does not support byte order marks, and reports broken JSON in Python's words.
    """
    files = (folder / name for name in OWN_FILES if (folder / name).is_file())
    texts = {path.name: read_text(path) for path in files}
    for name, text in texts.items():
        if name.endswith(".json"):
            parse_json(text, folder / name)
    if "tokenizer.json" not in texts:
        _check_merges(folder, texts)
    if all((folder / name).read_bytes() == text.encode() for name, text in texts.items()):
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="persongen-jax-") as copy:
        for name, text in texts.items():
            (Path(copy) / name).write_bytes("\n".join(split_lines(text)).encode())
        yield Path(copy)


def _check_merges(folder: Path, texts: dict[str, str]):
    """ValueError for a truncated merges.txt: it would open, and produce other tokens."""
    if "merges.txt" not in texts:
        raise FileNotFoundError(f"{folder / 'merges.txt'}: missing; copy the folder from the base")
    merges = map(str.split, split_lines(texts["merges.txt"]))
    made = {"".join(pair) for pair in merges if len(pair) == 2}
    # Every token except bytes and markers is made of two.
    lacking = [
        token
        for token in parse_json(texts["vocab.json"], folder / "vocab.json")
        if len(token.removesuffix("</w>")) > 1 and token not in made and "<|" not in token
    ]
    if len(lacking) > 2 + len(made) // 1000:
        raise ValueError(
            f"{folder / 'merges.txt'}: {len(lacking)} tokens of vocab.json come from none of its "
            f"{len(made)} lines: it is cut, or of another tokenizer; copy the folder from the base"
        )


def _max_length(tokenizer) -> int:
    # Without model_max_length in its config, transformers answers 1e30.
    try:
        length = int(tokenizer.model_max_length)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(
            f"model_max_length is {tokenizer.model_max_length!r} in {tokenizer.name_or_path}/"
            f"tokenizer_config.json: write a whole number, {CLIP_MAX_LENGTH} for CLIP"
        ) from None
    return length if length < 1e9 else CLIP_MAX_LENGTH


def _apart(words) -> str:
    """A pattern for any of the words, longest first, with no letter or digit next to it."""
    longest_first = sorted(words, key=len, reverse=True)
    return rf"({'|'.join(map(_alone, longest_first))})"


def _alone(word: str) -> str:
    # A sign, as in <me>, ends a word by itself: Chinese has no blanks around it.
    before = r"(?<!\w)" if re.match(r"\w", word) else ""
    after = r"(?!\w)" if re.search(r"\w$", word) else ""
    return before + re.escape(word) + after


def _finish(tokenizer, ids: list[int]) -> np.ndarray:
    """Adds markers around the ids and cuts or pads them; the pooled embedding is read at the end
    marker, so that one is kept whatever is cut."""
    length = _max_length(tokenizer)
    row = [tokenizer.bos_token_id, *ids[: length - 2], tokenizer.eos_token_id]
    return np.array(row + [tokenizer.pad_token_id] * (length - len(row)), np.int32)
