"""Prompts as fields: streams of any name, with and without the class token, from a call."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

from data_pipeline.examples.batches import batches, tf_batches
from data_pipeline.examples.conditions import Text
from data_pipeline.examples.fields import Call, Image, TimeIds
from data_pipeline.examples.source import ExampleSource
from tests.data_pipeline.photographs import photograph_fields, photograph_source, target_of

HAIR = ("red hair", None, "", "long black hair")


@pytest.fixture
def haired(records):
    """Records of which some have the manifest's key "hair"."""
    return [
        replace(record, extra={"hair": HAIR[i % 4]} if i % 3 else None)
        for i, record in enumerate(records)
    ]


@pytest.mark.parametrize("make", [batches, tf_batches])
def test_a_stream_reads_the_key_of_its_name(haired, tokenizers, make):
    fields = photograph_fields(tokenizers, ("text", "hair", "background"))
    source = ExampleSource(haired, fields, seed=0, size=16)
    batch = next(make(source, batch_size=12))
    assert list(batch["input_ids"]) == ["text", "hair", "background"]
    read = set()
    for row in range(12):
        example = {name: batch[name][row] for name in ("pixel_values", "time_ids")}
        target = target_of(example, haired)
        hair = (target.extra or {}).get("hair") or ""
        read.add(hair)
        for name, text in (("hair", hair), ("background", target.background)):
            np.testing.assert_array_equal(batch["input_ids"][name][row], tokenizers.encode(text))
    assert read == {"red hair", "", "long black hair"}


def test_a_key_that_is_no_prompt_by_itself_serves_as_one(records, tokenizers):
    records = [replace(record, class_word="man") for record in records]
    fields = (Text(tokenizers, ("text", "class_word", "mood"), at_trigger=False),)
    example = ExampleSource(records, fields, seed=0, size=16).example(0)
    np.testing.assert_array_equal(example["input_ids/class_word"], tokenizers.encode("man"))
    np.testing.assert_array_equal(example["input_ids/mood"], tokenizers.encode(""))


def test_a_key_that_is_not_text_fails_before_the_first_step(haired, tokenizers):
    haired[7] = replace(haired[7], extra={"hair": 3})
    with pytest.raises(ValueError, match=r"1 records.*\n.*carl_1\.png: hair is 3; give a text"):
        ExampleSource(haired, (Text(tokenizers, ("text", "hair")),), seed=0, size=16)
    ExampleSource(haired, (Text(tokenizers),), seed=0, size=16)  # nobody reads it


def test_without_a_trigger_word_nothing_marks_the_class_token(records, tokenizers):
    """It may appear in the captions all the same, and is removed."""
    records = [
        replace(r, caption=r.caption.replace("img", "")) if i % 2 else r
        for i, r in enumerate(records)
    ]
    field = Text(tokenizers, at_trigger=False)
    assert list(field.spec((16, 16))) == ["input_ids/text"]
    source = ExampleSource(records, (Image(), field, TimeIds()), seed=0, size=16)
    for n in range(12):
        example = source.example(n)
        assert list(example) == ["pixel_values", "input_ids/text", "time_ids"]
        target = target_of(example, records)
        said = target.caption.replace(" img", "")
        said += f". {target.background}" if target.background else ""
        np.testing.assert_array_equal(example["input_ids/text"], tokenizers.encode(said))


def test_another_trigger_word(records, tokenizers):
    records = [replace(r, caption=r.caption.replace("img", "<me>")) for r in records]
    fields = photograph_fields(tokenizers, trigger_word="<me>")
    example = ExampleSource(records, fields, seed=0, size=16).example(0)
    target = target_of(example, records)
    caption = target.caption + (f". {target.background}" if target.background else "")
    references = int(example["id_mask"].sum())
    ids, mask, _ = tokenizers.encode_with_trigger(caption, references, "<me>")
    np.testing.assert_array_equal(example["input_ids/text"], ids)
    np.testing.assert_array_equal(example["class_tokens_mask"], mask)
    field = Text(tokenizers, trigger_word="<me>", at_trigger=False)
    assert field.without_trigger("a man <me> with img") == "a man with img"


# ---- From a call -------------------------------------------------------------------------------


def make_call(prompts, people=None, **parts):
    return Call(prompts, parts, people, np.zeros((len(prompts), 6), np.float32), (16, 16))


def test_a_call_gives_prompts_with_a_class_token_per_reference(tokenizers):
    prompts, picture = ["a man img on a beach", "a woman img"], object()
    people = [[[picture] * 3], [[picture]]]
    field = Text(tokenizers, ("text", "hair"))
    given = field.given(make_call(prompts, people, hair=["red hair", None], other=["x", "y"]))
    assert list(given) == ["input_ids/text", "input_ids/hair", "class_tokens_mask"]
    for row, (prompt, count, hair) in enumerate(
        zip(prompts, (3, 1), ("red hair", ""), strict=True)
    ):
        ids, mask, _ = tokenizers.encode_with_trigger(prompt, count)
        np.testing.assert_array_equal(given["input_ids/text"][row], ids)
        np.testing.assert_array_equal(given["class_tokens_mask"][row], mask)
        np.testing.assert_array_equal(given["input_ids/hair"][row], tokenizers.encode(hair))
    for name, (shape, dtype) in field.spec((16, 16)).items():
        assert given[name].shape == (2, *shape) and given[name].dtype == dtype


def test_a_call_without_references_marks_nothing(tokenizers):
    prompts = ["a man img on a beach", "a dog"]
    plain = np.stack([tokenizers.encode(p) for p in ("a man on a beach", "a dog")])
    marking = Text(tokenizers, ("text", "hair")).given(make_call(prompts))
    assert not marking["class_tokens_mask"].any() and marking["class_tokens_mask"].shape == (2, 77)
    np.testing.assert_array_equal(marking["input_ids/text"], plain)
    np.testing.assert_array_equal(marking["input_ids/hair"], [tokenizers.encode("")] * 2)
    given = Text(tokenizers, at_trigger=False).given(make_call(prompts, [[[0] * 3], [[0]]]))
    assert list(given) == ["input_ids/text"]
    np.testing.assert_array_equal(given["input_ids/text"], plain)


# ---- Without the condition ---------------------------------------------------------------------


@pytest.mark.parametrize("xp", [np, jnp], ids=["numpy", "jax"])
def test_dropped_prompts_are_empty_ones(tokenizers, xp):
    field = Text(tokenizers, ("text", "hair"))
    ids = xp.asarray(np.stack([tokenizers.encode("a man"), tokenizers.encode("a dog")]))
    mask = xp.ones((2, 77), bool)
    batch = {"input_ids/text": ids, "input_ids/hair": ids, "class_tokens_mask": mask, "more": mask}
    dropped = field.dropped(batch, xp)
    assert dropped.keys() == {"input_ids/text", "input_ids/hair", "class_tokens_mask"}
    for name in ("input_ids/text", "input_ids/hair"):
        np.testing.assert_array_equal(dropped[name], [tokenizers.encode("")] * 2)
    assert not dropped["class_tokens_mask"].any()
    assert dropped["class_tokens_mask"].shape == (2, 77)
    del batch["class_tokens_mask"]
    plain = Text(tokenizers, ("text", "hair"), at_trigger=False).dropped(batch, xp)
    assert plain.keys() == {"input_ids/text", "input_ids/hair"}


@pytest.mark.parametrize("xp", [np, jnp], ids=["numpy", "jax"])
def test_dropped_states_are_those_of_the_empty_prompt(tokenizers, xp):
    """As stored in the feature cache: each row includes the empty prompt's."""
    names = ("text", "hair", "empty", "pooled", "empty_pooled")
    batch = {f"text_states/{name}": xp.full((2, 3), i) for i, name in enumerate(names)}
    batch["class_tokens_mask"] = xp.ones((2, 77), bool)
    dropped = Text(tokenizers, ("text", "hair")).dropped(batch, xp)
    values = {name: set(np.unique(np.asarray(array))) for name, array in dropped.items()}
    assert values == {
        "class_tokens_mask": {False},
        "text_states/text": {2},
        "text_states/hair": {2},
        "text_states/pooled": {4},
    }


@pytest.mark.parametrize("at_trigger", [True, False])
def test_the_trigger_word_is_left_out_of_captions_alone(records, tokenizers, at_trigger):
    records = [replace(r, background="an img of the sea") for r in records]
    text = Text(tokenizers, ("text", "background"), at_trigger=at_trigger)
    source = ExampleSource(records, (Image(), text), seed=0, size=16)
    found = source.example(0)["input_ids/background"]
    assert np.array_equal(found, tokenizers.encode("an img of the sea"))


def test_captions_that_are_cut_are_counted_and_shown_once(records, tokenizers, caplog):
    """Of 77 tokens, two are markers; the class word appears once per reference."""
    others = [len([r for r in records if r.identity == one.identity]) - 1 for one in records]
    texts = []
    for record, count in zip(records, others, strict=True):
        room = 75 - 2 - (min(count, 4) - 1)
        texts.append(replace(record, caption="a man img" + " a" * room, background="a " * 75))
    streams = ("text", "background")
    photograph_source(texts, tokenizers, streams=streams)
    assert "cut at" not in caplog.text
    long = [replace(r, caption=r.caption + " Castle, in ruins") for r in texts[:3]]
    long[0] = replace(long[0], background="a " * 75 + "b")
    photograph_source([*long, *texts[3:]], tokenizers, streams=streams)
    lines = [r.getMessage() for r in caplog.records if "cut at" in r.getMessage()]
    assert lines == [
        f"cut at the 77 tokens that are read: 3 of the captions; of {long[0].image} this part is "
        'lost: "Castle, in ruins"',
        "cut at the 77 tokens that are read: 1 of the texts 'background'; of "
        f'{long[0].image} this part is lost: "b"',
    ]
