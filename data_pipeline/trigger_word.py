"""The trigger word: where in a prompt the identity enters, and the prompt without it.

    split_at_trigger("a man img in a suit")     # ("a man", " in a suit")

The trigger stands directly behind the class word, as a word of its own, in any case. Characters
that nobody sees (zero-width spaces and joiners, byte order marks, soft hyphens, marks of writing
direction) come along with pasted text; around the trigger and in the class word they are left out,
because the token before the trigger is what the identity is fused into.
"""

import re
import unicodedata

# A zero-width space separates words, all others join.
SEPARATOR = "\u200b"
# Invisible without being "format" or "control" characters: joiners, fillers, variation selectors.
OTHERS_UNSEEN = frozenset(
    map(chr, (0x34F, 0x115F, 0x1160, 0x3164, 0xFFA0, *range(0xFE00, 0xFE10)))
) | frozenset(map(chr, range(0xE0100, 0xE01F0)))


class PromptError(ValueError):
    """A prompt that cannot be used; the message quotes it and says what to change."""


def is_unseen(character: str) -> bool:
    """Whether it shows nothing and takes no room; blanks and line ends do take room."""
    kind = unicodedata.category(character)
    return (kind in ("Cf", "Cc") and not character.isspace()) or character in OTHERS_UNSEEN


def without_unseen(text: str) -> str:
    """The text as one sees it: of what is invisible only a zero-width space leaves a blank."""
    return "".join(" " if c == SEPARATOR else c for c in text if c == SEPARATOR or not is_unseen(c))


def split_at_trigger(prompt: str, trigger_word: str = "img") -> tuple[str, str]:
    """The text up to and with the class word, and the text behind the trigger word.

    Their concatenation is the prompt without the trigger. "imgs" is none; any case is, because
    CLIP's tokenizers read lower case only. PromptError unless it stands exactly once and directly
    behind a word.
    """
    parts = _split(prompt, trigger_word)
    if len(parts) == 1:
        raise PromptError(_not_there(prompt, trigger_word))
    if len(parts) > 2:
        raise PromptError(
            f'the trigger word "{trigger_word}" stands {len(parts) - 1} times in the prompt '
            f'"{prompt}"; put it exactly once, behind the class word: "a man {trigger_word} in a '
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
            f'it has to follow the class word directly: "man {trigger_word}"'
        )
    return left, right


def has_trigger(prompt: str, trigger_word: str = "img") -> bool:
    """Whether the trigger stands there as a word of its own."""
    return len(_split(prompt, trigger_word)) > 1


def without_trigger(prompt: str, trigger_word: str = "img") -> str:
    """The prompt with the trigger left out wherever it stands as a word of its own."""
    return "".join(_split(prompt, trigger_word))


def _split(prompt: str, trigger_word: str) -> list[str]:
    """What stands between the triggers, without blanks before and invisible characters around."""
    if not trigger_word or without_unseen(trigger_word).split() != [trigger_word]:
        raise PromptError(f"trigger_word={trigger_word!r}: give one word, such as img")
    # A plain \b would fail for a trigger such as "<me>", whose ends are no word characters.
    first, *others = re.split(_pattern(trigger_word), prompt, flags=re.IGNORECASE)
    *lefts, last = [first, *map(_starts_visibly, others)]
    return [*map(_ends_visibly, lefts), last]


def _pattern(trigger_word: str) -> str:
    letter = r"[^\W\u115f\u1160\u3164\uffa0]"  # fillers count as letters, and nobody sees them
    return rf"(?<!{letter}){re.escape(trigger_word)}(?!{letter}|[\u0300-\u036f])"


def _starts_visibly(text: str) -> str:
    start = next((i for i, c in enumerate(text) if not is_unseen(c)), len(text))
    return text[start:]


def _ends_visibly(left: str) -> str:
    """Without blanks at the end, and without invisible characters in and after the last word."""
    end = len(left)
    while end and (left[end - 1].isspace() or is_unseen(left[end - 1])):
        end -= 1
    start = end
    while start and not left[start - 1].isspace():
        start -= 1
    return left[:start] + without_unseen(left[start:end])


def _not_there(prompt: str, trigger_word: str) -> str:
    example = f'"a man {trigger_word} in a space suit"'
    inside = re.search(rf"\w*{re.escape(trigger_word)}\w*", prompt, re.IGNORECASE)
    if inside:
        return (
            f'the trigger word "{trigger_word}" stands in the prompt "{prompt}" inside '
            f'"{inside[0]}", not as a word of its own; put a space before and after it: {example}'
        )
    unseen = next(filter(is_unseen, prompt), None)
    if unseen and re.search(_pattern(trigger_word), without_unseen(prompt), re.IGNORECASE):
        return (
            f'the trigger word "{trigger_word}" has an invisible character inside (such as '
            f'U+{ord(unseen):04X}) in the prompt "{prompt}"; type it anew: {example}'
        )
    return (
        f'the trigger word "{trigger_word}" stands 0 times in the prompt "{prompt}"; put it '
        f"exactly once, behind the class word: {example}"
    )
