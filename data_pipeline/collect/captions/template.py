"""Captions of what was measured, for machines without a model; marked as the template's."""

from data_pipeline.collect.captions.base import View, Written
from data_pipeline.records.captions import FRAMINGS

NAME, REVISION = "template", "1"
GREY = 6.0  # mean difference of the channels, below which a picture has no colours


def write(view: View, tries: int = 1, fallback: str = "", prompt: str = "") -> Written:
    """A caption of framing, colour and class word; nothing is known of background and body.

    Args:
        tries, fallback, prompt: of the captioner in whose place it stands.
    """
    word = view.class_word or "person"
    framing = next(name for least, name in FRAMINGS if view.face_share >= least)
    grey = "black and white " if view.colour < GREY else ""
    what = f"{grey}{framing}"
    text = f"{'an' if what[0] in 'aeiou' else 'a'} {what} of {_article(word)} {word}"
    return Written(word, text, text, "", "", NAME, REVISION, prompt, 1.0, tries, fallback)


def _article(word: str) -> str:
    return "an" if word[:1].lower() in "aeiou" else "a"
