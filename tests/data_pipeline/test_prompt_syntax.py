"""Prompt syntax of other programs causes a warning; plain text does not."""

import re
import time

import pytest

from data_pipeline.prompt_syntax import plain_syntax


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a (man img:1.5) in a hat", "(man img:1.5)"),
        ("(red hat : -0.3)", "(red hat : -0.3)"),
        ("a ((bright)) hat", "((bright))"),
        ("a (red hat)1.3 and", "(red hat)1.3"),
        ("a (red hat)++", "(red hat)++"),
        ("a hat++ on a man", "hat++"),
        ("a [red] hat", "[red]"),
        ("a [red:blue:0.5] hat", "[red:blue:0.5]"),
        ("a man BREAK a beach", "BREAK"),
        ("a man AND a beach", "AND"),
        ("a man <lora:style:0.8>", "<lora:style:0.8>"),
        ("a man, embedding:badhands.pt", "embedding:badhands.pt"),
        ("a {red|blue} hat", "{red|blue}"),
        ("a __colour__ hat", "__colour__"),
        ("a __colours/red-1__ hat", "__colours/red-1__"),
        ("a ((man img):1.3)", ":1.3)"),
        ("a ((man), smile:1.3)", "smile:1.3)"),
        ("a (man img:1.)", "(man img:1.)"),
        ("a （man：1.5）", "(man:1.5)"),
        ("BREAK", "BREAK"),
        ('("a", "b").and()', ".and("),
    ],
)
def test_syntax_of_other_programs_causes_a_warning(text, found):
    (line,) = plain_syntax(text)
    assert re.match(f'"[^"]*{re.escape(found)}" in a prompt is read as plain text', line)


@pytest.mark.parametrize(
    "text",
    ["a man (smiling), at 10:30", "A MAN AND A DOG", "a <me> man", "a well-known - man", "5:1", ""]
    + ["a C++ book", "in (ratio 16:9)", "at (10:30)", "a hat (see below), 3: a coat"]
    + ["an (old)-fashioned hat", "a man, aged 30-40, embeddings", "breakfast and a break"],
)
def test_plain_text_is_not_mistaken_for_syntax(text):
    assert list(plain_syntax(text)) == []


@pytest.mark.parametrize(
    "piece", ["a", "-", "+", "a+", "(", "((", ")", "_", "__", "[", "{|", " ", ":"]
)
def test_long_texts_take_no_time(piece):
    start = time.perf_counter()
    for text in (piece * 50_000, "aa" + piece * 50_000, "(" + piece * 50_000):
        list(plain_syntax(text))
    assert time.perf_counter() - start < 5
