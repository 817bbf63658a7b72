"""Captions for training, proposed from what is known of an image."""

import re

from data_pipeline.prompts import (
    PromptError,
    has_trigger,
    split_at_trigger,
    strip_invisible,
    without_trigger,
)

CLASS_WORDS = ("person", "man", "woman", "boy", "girl", "child", "baby")  # sought in captions
# (least height of the face as a part of the image's, what the photograph then is).
FRAMINGS = ((0.45, "close-up photo"), (0.15, "photo"), (0.0, "full-body photo"))


def propose_caption(
    text: str, class_word: str, face_share: float | None, trigger_word: str = "img"
) -> tuple[str, str]:
    """(caption with the trigger word after the class word, that class word).

    Args:
        text: a caption without or with the trigger; "" for none, then a template is filled in.
        class_word: what the person is; "" takes the one in the text, else "person".
        face_share: height of the face as a part of the image's; None if unknown.
    """
    text = " ".join(strip_invisible(text).split())
    if has_trigger(text, trigger_word):
        try:
            marked = split_at_trigger(text, trigger_word)[0].split()[-1]
            return text, class_word if marked.lower() == class_word.lower() else ""
        except PromptError:  # such as "IMG 2034"
            text = " ".join(without_trigger(text, trigger_word).split())
    words = (class_word,) if class_word else CLASS_WORDS
    # Not a part of a compound or of somebody's possession: man-made, a woman's hat.
    patterns = [rf"(?<![\w-]){re.escape(word)}(?![\w'’-])" for word in words]
    places = [match for p in patterns if (match := re.search(p, text, re.IGNORECASE))]
    if places:
        first = min(places, key=re.Match.start)
        caption = f"{text[: first.end()]} {trigger_word}{text[first.end() :]}"
        return caption, first[0]
    word = class_word or CLASS_WORDS[0]
    share = 0.3 if face_share is None else face_share
    framing = next(name for least, name in FRAMINGS if share >= least)
    caption = f"a {framing} of {_article(word)} {word} {trigger_word}"
    return (f"{caption}, {text}" if text else caption), word


def _article(word: str) -> str:
    return "an" if word[:1].lower() in "aeiou" else "a"
