"""Examples by index: contents of the records, drawn references, skipped images."""

import logging
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image as PillowImage

from data_pipeline.examples.conditions import Text
from data_pipeline.examples.fields import FieldError, Image, TimeIds
from data_pipeline.examples.source import ExampleSource
from data_pipeline.examples.spatial import ControlImage, Weight
from data_pipeline.pictures.reading import ImageError, load_image
from data_pipeline.prompts import PromptError
from data_pipeline.records.manifest import write_manifest
from data_pipeline.records.schema import Record
from data_pipeline.records.sources import open_records
from tests.data_pipeline.photographs import (
    assert_same,
    photograph_fields,
    photograph_source,
    references_of,
    target_of,
)


def test_examples_are_what_the_records_say(records, tokenizers):
    source = photograph_source(records, tokenizers, streams=("text", "background", "body"))
    counts = set()
    for n in range(48):
        example = source.example(n)
        target = target_of(example, records)
        references = references_of(example, records)
        counts.add(len(references))
        assert all(r.identity == target.identity for r in references)
        assert len({r.image for r in references}) == len(references)
        assert target.image not in {r.image for r in references}
        assert (example["id_mask"] == (np.arange(4) < len(references))).all()
        assert (example["id_pixel_values"][~example["id_mask"]] == 0).all()
        ids, mask, _ = tokenizers.encode_with_trigger(target.caption, len(references))
        np.testing.assert_array_equal(example["input_ids/text"], ids)
        np.testing.assert_array_equal(example["class_tokens_mask"], mask)
        for stream in ("background", "body"):
            expected = tokenizers.encode(getattr(target, stream))
            np.testing.assert_array_equal(example[f"input_ids/{stream}"], expected)
        assert (example["face_box"] == 0).all() == (target.face_box is None)
    assert counts == {1, 2, 3, 4}


def test_parts_without_a_stream_join_the_caption(records, tokenizers):
    """A method that only reads "text" also gets the background."""
    records = [replace(r, background="a beach", body="in a coat") for r in records]
    for streams, parts in ((("text",), ". a beach. in a coat"), (("text", "body"), ". a beach")):
        source = photograph_source(records, tokenizers, streams=streams)
        example = source.example(5)
        target = target_of(example, records)
        expected, mask, _ = tokenizers.encode_with_trigger(
            target.caption + parts, int(example["id_mask"].sum())
        )
        np.testing.assert_array_equal(example["input_ids/text"], expected)
        np.testing.assert_array_equal(example["class_tokens_mask"], mask)


def test_time_ids_come_from_the_record(records, tokenizers):
    """Every image as the lower right quarter of a photograph."""
    parts = []
    for record in records:
        height, width = load_image(record.image).shape[:2]
        crop = (width, height, 2 * width, 2 * height)
        parts.append(replace(record, original_size=(2 * height, 2 * width), crop=crop))
    whole, part = (photograph_source(r, tokenizers) for r in (records, parts))
    for n in range(12):
        one, other = whole.example(n), part.example(n)
        height, width, top, left, *target = one.pop("time_ids")
        scaled = [round(16 * side / min(height, width)) for side in (height, width)]
        expected = [2 * height, 2 * width, top + scaled[0], left + scaled[1], *target]
        np.testing.assert_array_equal(other.pop("time_ids"), expected)
        assert_same(one, other)


def test_pictures_come_from_read_image_once(records, tokenizers):
    """Another source of the same images; cached ones are not read again."""
    files = {f"key {i}": record.image for i, record in enumerate(records)}
    named = [replace(record, image=f"key {i}") for i, record in enumerate(records)]
    asked = []

    def read_image(name):
        asked.append(name)
        return load_image(files[name])

    source = photograph_source(named, tokenizers, read_image=read_image)
    plain = photograph_source(records, tokenizers)
    for n in range(24):
        assert_same(source.example(n), plain.example(n))
    assert sorted(asked) == sorted(files)


def test_cached_arrays_are_read_only(records, tokenizers):
    source = photograph_source(records, tokenizers, streams=("text", "background"))
    example = source.example(0)
    for array in (example[name] for name in example if name.startswith(("input_ids/", "class_"))):
        with pytest.raises(ValueError, match="read-only"):
            array[:] = 0
    example["pixel_values"][:] = example["id_pixel_values"][:] = 0
    assert source.example(0)["pixel_values"].any() and source.example(0)["id_pixel_values"].any()


def test_an_epoch_shows_every_picture_once_and_epochs_differ(records, tokenizers):
    source = photograph_source(records, tokenizers)
    n = len(records)
    orders = [
        [target_of(source.example(i), records).image for i in range(e * n, (e + 1) * n)]
        for e in range(2)
    ]
    assert sorted(orders[0]) == sorted(orders[1]) == sorted(r.image for r in records)
    assert orders[0] != orders[1]


def test_an_example_depends_on_seed_and_number_only(records, tokenizers):
    one = photograph_source(records, tokenizers)
    other = photograph_source(records, tokenizers, cache_bytes=0)
    for n in (29, 0, 7):
        assert_same(one.example(n), other.example(n))
    reseeded = photograph_source(records, tokenizers, seed=4)
    assert any(
        not np.array_equal(one.example(n)["pixel_values"], reseeded.example(n)["pixel_values"])
        for n in range(5)
    )


def test_references_are_drawn_anew_each_epoch(records, tokenizers):
    carl = [r for r in records if r.identity == "carl"]
    source = photograph_source(carl, tokenizers)
    drawn = {}
    for n in range(30):
        example = source.example(n)
        names = frozenset(r.image for r in references_of(example, carl))
        drawn.setdefault(target_of(example, carl).image, set()).add(names)
    assert all(len(sets) > 1 for sets in drawn.values())


def test_one_file_under_two_captions_never_refers_to_itself(records, tokenizers):
    anna = [r for r in records if r.identity == "anna"]
    twice = [*anna, replace(anna[0], caption="another man img")]
    source = photograph_source(twice, tokenizers)
    for n in range(12):
        example = source.example(n)
        target = target_of(example, anna)
        assert {r.image for r in references_of(example, anna)} == {
            r.image for r in anna if r.image != target.image
        }


def test_unusable_captions_are_found_before_the_first_step(records, tokenizers):
    late = replace(records[-1], caption="a " * 73 + "man img")
    with pytest.raises(PromptError, match=r"1 records.*\n.*carl_5\.png.*too late"):
        photograph_source([*records[:-1], late], tokenizers)


def test_problems_of_several_kinds_are_reported_together(records, tokenizers):
    late = replace(records[-1], caption="a " * 73 + "man img")
    heavy = replace(records[0], extra={"weight": "much"})
    fields = (*photograph_fields(tokenizers), Weight())
    with pytest.raises(
        ValueError, match=r"2 records.*\n.*anna_0.*weight is 'much'.*\n.*carl_5"
    ) as told:
        ExampleSource([heavy, *records[1:-1], late], fields, seed=0, size=16)
    assert not isinstance(told.value, PromptError | FieldError)


def test_unusable_sets_are_refused(records, tokenizers):
    with pytest.raises(ValueError, match="no records"):
        photograph_source([], tokenizers)
    with pytest.raises(ValueError, match="1 identities have no second image"):
        photograph_source(records[1:], tokenizers)
    with pytest.raises(ValueError, match='"text", the caption, must be among them'):
        photograph_source(records, tokenizers, streams=("background",))


def test_a_person_whose_references_do_not_decode_is_skipped(records, tokenizers):
    """One of anna's two images is broken, which leaves the other without a reference."""
    with open(records[1].image, "wb") as file:
        file.write(b"broken")
    source = photograph_source(records, tokenizers)
    shown = {target_of(source.example(n), records[2:]).identity for n in range(24)}
    assert shown == {"bert", "carl"} and list(source.skipped) == [records[1].image]


def test_cache_is_limited(records, tokenizers):
    source = photograph_source(records, tokenizers, cache_bytes=12_000)
    for n in range(12):
        source.example(n)
    kept = sum(array.nbytes for array in source.pictures._kept.values())
    assert 0 < kept <= 12_000 and kept + source.pictures._free_bytes == 12_000


def test_crops_can_be_central(records, tokenizers):
    source = photograph_source(records, tokenizers, random_crop=False)
    for n in range(12):
        h, w, top, left, *_ = source.example(n)["time_ids"]
        assert top == (round(16 * h / min(h, w)) - 16) // 2
        assert left == (round(16 * w / min(h, w)) - 16) // 2


# ---- Examples without references ---------------------------------------------------------------


@pytest.fixture
def single_pictures(tmp_path):
    """A folder with one image of each of three people, and no trigger word in it."""
    rng = np.random.default_rng(1)
    written = []
    for i, identity in enumerate(("anna", "bert", "carl")):
        path = tmp_path / f"{identity}.png"
        pixels = rng.integers(0, 256, (20, 24 + 4 * i, 3), np.uint8)
        PillowImage.fromarray(pixels).save(path)
        written.append(Record(str(path), identity, f"a portrait of {identity}", extra={"age": 30}))
    write_manifest(tmp_path, written)
    return tmp_path


def test_without_references_one_picture_and_a_plain_caption_serve(single_pictures, tokenizers):
    with pytest.raises(ValueError, match="3 lines cannot be used"):
        open_records(single_pictures)
    with pytest.raises(ValueError, match="no identity has two images"):
        open_records(single_pictures, marked=False)
    records, read_image = open_records(single_pictures, marked=False, least=1)
    fields = (Image(), Text(tokenizers, at_trigger=False), TimeIds())
    source = ExampleSource(records, fields, seed=0, size=16, read_image=read_image)
    shown = set()
    for n in range(3):
        example = source.example(n)
        assert list(example) == ["pixel_values", "input_ids/text", "time_ids"]
        target = target_of(example, records)
        shown.add(target.identity)
        np.testing.assert_array_equal(example["input_ids/text"], tokenizers.encode(target.caption))
    assert shown == {"anna", "bert", "carl"}


def test_references_need_a_second_picture_all_the_same(single_pictures, tokenizers):
    records, _ = open_records(single_pictures, marked=False, least=1)
    fields = photograph_fields(tokenizers, at_trigger=False)
    with pytest.raises(ValueError, match="3 identities have no second image"):
        ExampleSource(records, fields, seed=0, size=16)


def test_without_references_the_class_token_stands_once(records, tokenizers):
    """A method may learn a token at the class word without reading an image of the person."""
    source = ExampleSource(records, (Image(), Text(tokenizers), TimeIds()), seed=0, size=16)
    example = source.example(0)
    ids, mask, _ = tokenizers.encode_with_trigger(join(target_of(example, records)), 1)
    np.testing.assert_array_equal(example["input_ids/text"], ids)
    np.testing.assert_array_equal(example["class_tokens_mask"], mask)


def join(record):
    return f"{record.caption}. {record.background}" if record.background else record.caption


def test_without_references_undecodable_targets_are_reported(single_pictures, tokenizers):
    records, _ = open_records(single_pictures, marked=False, least=1)
    source = ExampleSource(records, (Image(),), seed=0, size=16)
    for record in records:
        with open(record.image, "wb") as file:
            file.write(b"broken")
    with pytest.raises(ImageError, match="no target of 3 can be decoded; first cause: .*png"):
        source.example(0)


# ---- Keys of the manifest that nothing reads ---------------------------------------------------


def unread(caplog, records, fields):
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        ExampleSource(records, fields, seed=0, size=16)
    (message,) = caplog.messages or [""]
    return message


def test_keys_that_no_field_reads_are_named(records, tokenizers, caplog):
    say = {"facebox": [1, 2, 3, 4], "hair": "red", "weight": 2}
    records = [replace(records[0], extra=say), *records[1:]]
    plain = photograph_fields(tokenizers)
    assert unread(caplog, records, plain).endswith("does not read: facebox, hair, weight")
    told = unread(caplog, records, (*photograph_fields(tokenizers, ("text", "hair")), Weight()))
    assert told.endswith("does not read: facebox")
    records[0].extra.pop("facebox")
    assert not unread(caplog, records, (*photograph_fields(tokenizers, ("text", "hair")), Weight()))


def test_further_pictures_that_no_field_reads_are_named(records, tokenizers, caplog):
    records = [replace(r, images={"pose": r.image, "depth": r.image}) for r in records]
    plain = photograph_fields(tokenizers)
    assert unread(caplog, records, plain).endswith("does not read: images.depth, images.pose")
    told = unread(caplog, records, (*plain, ControlImage("pose")))
    assert told.endswith("does not read: images.depth")


def test_keys_that_nothing_reads_make_no_other_run(records, tokenizers):
    further = [replace(r, extra={"url": "x", "weight": 1.0}) for r in records]
    plain, same = (photograph_source(r, tokenizers).fingerprint for r in (records, further))
    assert plain == same
    fields = (*photograph_fields(tokenizers), Weight())
    assert ExampleSource(further, fields, seed=3, size=16).fingerprint != plain
