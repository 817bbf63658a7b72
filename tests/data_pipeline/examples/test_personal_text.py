"""Captions that name one person by a token."""

from types import SimpleNamespace

import numpy as np
import pytest

from data_pipeline.examples.personal_text import TEMPLATES, PersonalText, Wording
from data_pipeline.prompts import Tokenizers
from data_pipeline.records.class_images import CLASS
from data_pipeline.records.schema import Record


@pytest.fixture(scope="module")
def tokenizers(tiny_base):
    return Tokenizers.from_pretrained(tiny_base)


@pytest.fixture
def field(tokenizers):
    return lambda **wording: PersonalText(tokenizers, Wording(**wording), trigger_word="img")


def record(caption, **more):
    return Record("1.png", "ann", caption, **more)


NAMED = [
    ("a woman img on a beach", "a ohwx woman on a beach", "a <me> on a beach"),
    (
        "a photo of a man img, old",
        "a photo of a ohwx man, old",
        "a photo of a <me>, old",
    ),
    ("woman img", "ohwx woman", "<me>"),
    ("a beach", "a beach", "a beach"),
    ("img of a beach", "of a beach", "of a beach"),  # there is no class word
]


@pytest.mark.parametrize(("given", "before", "instead"), NAMED)
def test_the_token_is_where_the_trigger_word_was(field, given, before, instead):
    for wording, wanted in (
        ({"token": "ohwx"}, before),
        ({"token": "<me>", "instead": True}, instead),
    ):
        text = field(**wording)
        assert text.caption(record(given)).strip() == wanted
        ids, mask, read = text.read(given, 0)
        assert read.strip() == wanted and not mask.any()
        assert np.array_equal(ids, text.tokenizers.encode(read))
    assert field().caption(record("a woman img on a beach")) == "a woman on a beach"


def test_one_prompt_for_all_but_class_images(field):
    text = field(token="ohwx", prompt="a photo of a woman img")
    assert text.caption(record("x", background="a beach")) == "a photo of a ohwx woman"
    # Those name nobody, also where their files mark a place.
    for caption in ("a woman", "a woman img"):
        assert text.caption(record(caption, extra={CLASS: True})) == "a woman"


def test_parts_are_shuffled_after_the_kept_ones(field):
    text = field(shuffle=True, keep=2)
    caption = "ohwx woman, a photo, red, blue, green"
    rng, seen = np.random.default_rng(0), set()
    for _ in range(40):
        drawn = text.draw(record(caption), rng)
        assert drawn.startswith("ohwx woman, a photo,")
        assert sorted(drawn.split(",")) == sorted(caption.split(","))
        seen.add(drawn)
    assert len(seen) == 6
    assert text.draw(record(caption, extra={CLASS: True}), rng) == caption


def test_templates_say_the_token_and_nothing_of_the_picture(field):
    text = field(token="<me>", templates=True)
    rng = np.random.default_rng(0)
    seen = {text.draw(record("a woman img on a beach"), rng) for _ in range(200)}
    assert seen == {each.format("<me>") for each in TEMPLATES}
    assert len(set(TEMPLATES)) == len(TEMPLATES) and all(t.count("{}") == 1 for t in TEMPLATES)


def test_every_text_that_can_be_drawn_is_an_input_of_the_cache(field):
    text = field(token="<me>", templates=True)
    inputs = text.all_inputs(None, record("a woman img"))
    stored = {entry.make().tobytes() for entry in inputs}
    rng = np.random.default_rng(0)
    example = SimpleNamespace(record=record("a woman img"), rng=rng)
    for _ in range(30):
        assert {entry.make().tobytes() for entry in text.inputs(example)} <= stored


def test_captions_that_name_nobody_are_said(field):
    text = field(token="ohwx")
    for caption in ("a woman img", "a OHWX woman", "a beach"):
        text.check(record(caption), 0)
    (line,) = text.notes()
    assert "1 captions name nobody" in line and "'ohwx'" in line and "a beach" in line
    assert not text.notes()


@pytest.mark.parametrize(
    ("wording", "said"),
    [
        ({"templates": True}, "config.token"),
        ({"templates": True, "token": "x", "prompt": "y"}, "config.instance_prompt"),
    ],
)
def test_settings_that_exclude_each_other(wording, said):
    with pytest.raises(ValueError, match=said):
        Wording(**wording)
