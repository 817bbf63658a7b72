"""Where the identity enters a prompt, with invisible characters of pasted text."""

import pytest

from data_pipeline.prompts import (
    PromptError,
    has_trigger,
    split_at_trigger,
    without_trigger,
)

PLAIN = "a man img in a suit"
# Zero-width space, non-joiner and joiner, byte order mark, soft hyphen, marks of direction and
# isolates, word joiner, variation selector, Hangul filler, a control character.
UNSEEN = "\u200b\u200c\u200d\ufeff\u00ad\u200e\u200f\u202e\u2066\u2060\ufe0f\u3164\x07"


@pytest.mark.parametrize("c", UNSEEN)
def test_invisible_characters_around_the_trigger_are_left_out(c):
    for prompt in (
        f"a man{c} img in a suit",
        f"a man {c}img in a suit",
        f"a man {c} img{c} in a suit",
        f"a man img{c}{c} in a suit",
    ):
        assert split_at_trigger(prompt) == split_at_trigger(PLAIN), prompt
        assert without_trigger(prompt) == "a man in a suit"


def test_invisible_characters_in_the_class_word_are_left_out():
    """The identity enters its last token, otherwise what follows such a character."""
    assert split_at_trigger("a busi\u00adness\u00adman img") == ("a businessman", "")
    assert split_at_trigger("tall\u200bman img") == ("tall man", "")
    assert split_at_trigger("\ufeffman img") == ("man", "")
    # Everything except the class word stays unchanged.
    assert split_at_trigger("a sun\u00adny man img") == ("a sun\u00adny man", "")


def test_accents_and_letters_that_join_stay():
    assert split_at_trigger("un garc\u0327on img") == ("un garc\u0327on", "")
    assert split_at_trigger("एक आदमी img") == ("एक आदमी", "")


@pytest.mark.parametrize(
    ("prompt", "inside"),
    [
        ("男人img", "男人img"),
        ("a man_img", "man_img"),
        ("a man img2", "img2"),
        ("a manimg on a hill", "manimg"),
        ("a man img\u0301", "img"),
        ("a man imgs", "imgs"),
        ("a man IMG_1", "IMG_1"),
    ],
)
def test_a_trigger_that_is_no_word_of_its_own(prompt, inside):
    with pytest.raises(PromptError) as caught:
        split_at_trigger(prompt)
    said = str(caught.value)
    assert f'inside "{inside}", not as a separate word; put a space before and after' in said
    assert f'"{prompt}"' in said and '"a man img in a space suit"' in said
    assert not has_trigger(prompt) and without_trigger(prompt) == prompt


@pytest.mark.parametrize("c", "\u200b\u00ad\u2060")
def test_a_trigger_with_an_invisible_character_inside(c):
    if c == "\u200b":  # it separates words
        with pytest.raises(PromptError, match="appears 0 times"):
            split_at_trigger(f"a man i{c}mg")
        return
    with pytest.raises(PromptError, match=rf"invisible character inside .*U\+{ord(c):04X}"):
        split_at_trigger(f"a man i{c}mg")


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("\u200b img", "opens the prompt"),
        ("a man,\u200b img", 'follows a ","'),
        ("a man\u2764\ufe0f img", 'follows a "\u2764"'),
        ("a man", "appears 0 times"),
        ("a man img\u200bimg", "appears 2 times"),
    ],
)
def test_other_invalid_triggers_are_still_refused(prompt, message):
    with pytest.raises(PromptError, match=message):
        split_at_trigger(prompt)


@pytest.mark.parametrize("word", ["", " ", "my img", "img\u200b", "\ufeffimg"])
def test_a_trigger_word_that_is_no_word(word):
    with pytest.raises(PromptError, match="give one word"):
        split_at_trigger(PLAIN, word)
