"""Validation prompts: the thesis' wording, pronouns, joined parts, files."""

import json

import pytest

from data_pipeline.prompts import PromptError
from persongen_jax.evaluation.prompts import ValidationPrompt, class_word_of, open_prompts

TEMPLATE = ValidationPrompt(
    "a photo of a {word} img, {his} face is happy",
    "a beach behind {him}",
    "{He} is in a red coat",
)


def test_the_thesis_prompts():
    prompts = open_prompts("thesis")
    assert len(prompts) == 4
    assert prompts[0].general == "Photo of a person img looking into the camera."
    assert prompts[1].background.endswith('a big sign above it saying "Neon Bank".')
    assert prompts[2].body == "The man is in a space suit."
    other = open_prompts("thesis", "sks")
    assert other[2].general == "A photo of a man sks, his face is seen very surprised."


@pytest.mark.parametrize(
    ("word", "whole"),
    [
        ("man", "a photo of a man, his face is happy. a beach behind him. He is in a red coat"),
        ("girl", "a photo of a girl, her face is happy. a beach behind her. She is in a red coat"),
        (
            "person",
            "a photo of a person, the person's face is happy. a beach behind the person. "
            "The person is in a red coat",
        ),
    ],
)
def test_pronouns_go_by_the_class_word_and_the_trigger_goes(word, whole):
    assert TEMPLATE.fill(word).whole("img") == whole


@pytest.mark.parametrize("prompt", open_prompts("thesis"))
def test_whole_prompts_have_every_part_and_no_trigger(prompt):
    whole = prompt.fill("woman").whole("img")
    assert "img" not in whole
    assert prompt.background in whole and prompt.body in whole


def test_parts_stay_apart_where_they_are_read():
    prompt = TEMPLATE.fill("man")
    text, apart = prompt.place(("text",))
    assert text.endswith(" man img, his face is happy. a beach behind him. He is in a red coat")
    assert apart == {}
    text, apart = prompt.place(("text", "background"))
    assert text == "a photo of a man img, his face is happy. He is in a red coat"
    assert apart == {"background": "a beach behind him"}
    # A stream without its own text gets the empty one.
    assert ValidationPrompt("a man img").place(("text", "body"))[1] == {"body": ""}


def test_class_words():
    from data_pipeline.records.schema import Record

    caption = "a photo of an old woman img in the snow"
    assert class_word_of(Record("x.png", "anna", caption), "img") == "woman"
    own = Record("x.png", "anna", caption, class_word="old woman")
    assert class_word_of(own, "img") == "old woman"


def test_prompts_from_a_file(tmp_path):
    path = tmp_path / "prompts.json"
    path.write_text(json.dumps([{"general": "a {word} img", "body": "{he} waves"}]))
    (prompt,) = open_prompts(str(path))
    assert prompt.fill("boy").whole("img") == "a boy. he waves"


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (None, "no such file"),
        ("[", "JSON"),
        ("[]", "non-empty list"),
        ('[{"background": "a beach"}]', "prompt 1"),
        ('[{"general": "a man img"}, {"general": "a man img", "clothes": "a coat"}]', "prompt 2"),
        ('[{"general": "a man in a coat"}]', '"img" appears 0 times'),
        ('[{"general": "a {word} img, {name}"}]', "name"),
        ('[{"general": "a {word img"}]', "word"),
    ],
)
def test_bad_files_are_named(content, named, tmp_path):
    path = tmp_path / "prompts.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises((ValueError, PromptError), match=named):
        open_prompts(str(path))
