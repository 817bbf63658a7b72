import itertools
import json
import logging
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_pipeline.loader import ExampleSource, batches, prefetch_to_device, tf_batches
from data_pipeline.manifest import read_manifest
from data_pipeline.schema import example_spec, flatten, unflatten
from data_pipeline.transforms import ImageError, clip_preprocess, load_image, square_face_crop
from persongen_jax.prompts import PromptError

OPTIONS = {"seed": 3, "size": 16, "id_size": 14}


@pytest.fixture
def records(folder):
    return read_manifest(folder)


def take(iterator, count):
    return list(itertools.islice(iterator, count))


def assert_same(a, b):
    a, b = flatten(a), flatten(b)
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype, name
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def target_of(example, records, size=16):
    """The record whose picture the example's pixels were cut from."""
    top, left = (int(v) for v in example["time_ids"][2:4])
    for record in records:
        image = load_image(record.image)
        if image.shape[:2] != tuple(example["time_ids"][:2]):
            continue
        height, width = image.shape[:2]
        scaled = [round(size * side / min(height, width)) for side in (width, height)]
        scaled = np.asarray(Image.fromarray(image).resize(scaled, Image.Resampling.BICUBIC))
        crop = scaled[top : top + size, left : left + size]
        if np.array_equal(crop.astype(np.float32) / 127.5 - 1, example["pixel_values"]):
            return record
    raise AssertionError("the target is none of the records")


def references_of(example, records, size=14):
    found = []
    for pixels in example["id_pixel_values"][example["id_mask"]]:
        for record in records:
            image = load_image(record.image)
            if record.face_box:
                image = square_face_crop(image, record.face_box)
            if np.array_equal(clip_preprocess(image, size), pixels):
                found.append(record)
    assert len(found) == example["id_mask"].sum()
    return found


def test_batch_has_the_documented_arrays(records, tokenizers):
    stream = batches(records, tokenizers, batch_size=3, streams=("text", "background"), **OPTIONS)
    flat = flatten(next(stream))
    spec = example_spec(size=16, id_size=14, streams=("text", "background"))
    assert list(flat) == list(spec)
    for name, (shape, dtype) in spec.items():
        assert flat[name].shape == (3, *shape) and flat[name].dtype == dtype, name
    assert flat["input_ids/background"].shape == (3, 2, 77)


def test_examples_are_what_the_records_say(records, tokenizers):
    source = ExampleSource(records, tokenizers, **OPTIONS, streams=("text", "background", "body"))
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
        np.testing.assert_array_equal(example["input_ids"]["text"], ids)
        np.testing.assert_array_equal(example["class_tokens_mask"], mask)
        for stream in ("background", "body"):
            expected = tokenizers.encode(getattr(target, stream))
            np.testing.assert_array_equal(example["input_ids"][stream], expected)
        assert (example["face_box"] == 0).all() == (target.face_box is None)
    assert counts == {1, 2, 3, 4}


def test_parts_without_a_stream_join_the_caption(records, tokenizers):
    """A method that reads "text" alone is told of the background as well."""
    records = [replace(r, background="a beach", body="in a coat") for r in records]
    for streams, parts in ((("text",), ". a beach. in a coat"), (("text", "body"), ". a beach")):
        source = ExampleSource(records, tokenizers, **OPTIONS, streams=streams)
        example = source.example(5)
        target = target_of(example, records)
        expected, mask, _ = tokenizers.encode_with_trigger(
            target.caption + parts, int(example["id_mask"].sum())
        )
        np.testing.assert_array_equal(example["input_ids"]["text"], expected)
        np.testing.assert_array_equal(example["class_tokens_mask"], mask)


def test_time_ids_come_from_the_record(records, tokenizers):
    """Every picture as the lower right quarter of a photograph."""
    parts = []
    for record in records:
        height, width = load_image(record.image).shape[:2]
        crop = (width, height, 2 * width, 2 * height)
        parts.append(replace(record, original_size=(2 * height, 2 * width), crop=crop))
    whole, part = (ExampleSource(r, tokenizers, **OPTIONS) for r in (records, parts))
    for n in range(12):
        one, other = whole.example(n), part.example(n)
        height, width, top, left, *target = one.pop("time_ids")
        scaled = [round(16 * side / min(height, width)) for side in (height, width)]
        expected = [2 * height, 2 * width, top + scaled[0], left + scaled[1], *target]
        np.testing.assert_array_equal(other.pop("time_ids"), expected)
        assert_same(one, other)


def test_pictures_come_from_read_image_once(records, tokenizers):
    """Another source of the same pictures; whatever is kept in memory is not read again."""
    files = {f"key {i}": record.image for i, record in enumerate(records)}
    named = [replace(record, image=f"key {i}") for i, record in enumerate(records)]
    asked = []

    def read_image(name):
        asked.append(name)
        return load_image(files[name])

    source = ExampleSource(named, tokenizers, read_image=read_image, **OPTIONS)
    plain = ExampleSource(records, tokenizers, **OPTIONS)
    for n in range(24):
        assert_same(source.example(n), plain.example(n))
    assert sorted(asked) == sorted(files)


def test_kept_arrays_cannot_be_spoilt(records, tokenizers):
    source = ExampleSource(records, tokenizers, **OPTIONS, streams=("text", "background"))
    example = source.example(0)
    for array in (example["class_tokens_mask"], *example["input_ids"].values()):
        with pytest.raises(ValueError, match="read-only"):
            array[:] = 0
    example["pixel_values"][:] = example["id_pixel_values"][:] = 0
    assert source.example(0)["pixel_values"].any() and source.example(0)["id_pixel_values"].any()


def test_an_epoch_shows_every_picture_once_and_epochs_differ(records, tokenizers):
    source = ExampleSource(records, tokenizers, **OPTIONS)
    n = len(records)
    orders = [
        [target_of(source.example(i), records).image for i in range(e * n, (e + 1) * n)]
        for e in range(2)
    ]
    assert sorted(orders[0]) == sorted(orders[1]) == sorted(r.image for r in records)
    assert orders[0] != orders[1]


def test_an_example_depends_on_seed_and_number_only(records, tokenizers):
    one = ExampleSource(records, tokenizers, **OPTIONS)
    other = ExampleSource(records, tokenizers, cache_bytes=0, **OPTIONS)
    for n in (29, 0, 7):
        assert_same(one.example(n), other.example(n))
    reseeded = ExampleSource(records, tokenizers, **{**OPTIONS, "seed": 4})
    assert any(
        not np.array_equal(one.example(n)["pixel_values"], reseeded.example(n)["pixel_values"])
        for n in range(5)
    )


def test_references_are_drawn_anew_each_epoch(records, tokenizers):
    carl = [r for r in records if r.identity == "carl"]
    source = ExampleSource(carl, tokenizers, **OPTIONS)
    drawn = {}
    for n in range(30):
        example = source.example(n)
        names = frozenset(r.image for r in references_of(example, carl))
        drawn.setdefault(target_of(example, carl).image, set()).add(names)
    assert all(len(sets) > 1 for sets in drawn.values())


def test_one_file_under_two_captions_never_refers_to_itself(records, tokenizers):
    anna = [r for r in records if r.identity == "anna"]
    twice = [*anna, replace(anna[0], caption="another man img")]
    source = ExampleSource(twice, tokenizers, **OPTIONS)
    for n in range(12):
        example = source.example(n)
        target = target_of(example, anna)
        assert {r.image for r in references_of(example, anna)} == {
            r.image for r in anna if r.image != target.image
        }


def test_resuming_gives_the_batches_that_would_have_come(records, tokenizers):
    whole = take(batches(records, tokenizers, batch_size=4, **OPTIONS), 6)
    rest = take(batches(records, tokenizers, batch_size=4, start_step=4, **OPTIONS), 2)
    for a, b in zip(whole[4:], rest, strict=True):
        assert_same(a, b)


@pytest.mark.parametrize("make", [batches, tf_batches])
def test_saved_and_restored_exactly(records, tokenizers, make):
    arguments = {"batch_size": 4, **OPTIONS}
    stream = make(records, tokenizers, start_step=2, **arguments)
    assert stream.start_step == 2
    take(stream, 3)
    state = json.loads(json.dumps(stream.state()))
    assert state["step"] == 5 and stream.state(4)["step"] == 4
    after = take(stream, 3)
    restored = make(records, tokenizers, start_step=state["step"], **arguments)
    restored.check(state)
    for a, b in zip(after, restored, strict=False):
        assert_same(a, b)


def test_another_position_is_told(records, tokenizers):
    state = batches(records, tokenizers, batch_size=4, start_step=5, **OPTIONS).state()

    def check(records=records, batch_size=4, start_step=5, **changes):
        options = {**OPTIONS, **changes}
        stream = batches(
            records, tokenizers, batch_size=batch_size, start_step=start_step, **options
        )
        stream.check(state)

    moved = [replace(r, image=r.image.replace("anna", "elsewhere")) for r in records]
    check(moved, size=32)
    with pytest.raises(ValueError, match="step was 5 and is 0"):
        check(start_step=0)
    with pytest.raises(ValueError, match="seed was 3 and is 4; batch_size was 4 and is 2"):
        check(seed=4, batch_size=2)
    with pytest.raises(ValueError, match="records was"):
        check([replace(records[0], background="a lake"), *records[1:]])


def test_workers_make_the_same_batches(records, tokenizers):
    arguments = {"batch_size": 4, **OPTIONS}
    alone = take(batches(records, tokenizers, **arguments), 4)
    for make in (batches, tf_batches):
        for a, b in zip(alone, make(records, tokenizers, workers=3, **arguments), strict=False):
            assert_same(a, b)


def test_two_processes_share_a_batch(records, tokenizers):
    arguments = {"batch_size": 4, "start_step": 1, **OPTIONS}
    whole = take(batches(records, tokenizers, **arguments), 3)
    parts = [
        take(batches(records, tokenizers, process_index=i, process_count=2, **arguments), 3)
        for i in range(2)
    ]
    for step in range(3):
        halves = [flatten(parts[i][step]) for i in range(2)]
        assert not np.array_equal(halves[0]["pixel_values"], halves[1]["pixel_values"])
        joined = {name: np.concatenate([h[name] for h in halves]) for name in halves[0]}
        assert_same(whole[step], unflatten(joined))


@pytest.mark.parametrize(
    ("index", "count", "message"), [(0, 3, "evenly to 3 processes"), (2, 2, "not below 2")]
)
def test_impossible_sharing(records, tokenizers, index, count, message):
    with pytest.raises(ValueError, match=message):
        batches(
            records, tokenizers, batch_size=4, process_index=index, process_count=count, **OPTIONS
        )


def test_tf_data_gives_the_same_batches(records, tokenizers):
    arguments = {"batch_size": 4, "streams": ("text", "body"), **OPTIONS}
    memory = take(batches(records, tokenizers, **arguments), 7)
    for a, b in zip(memory, take(tf_batches(records, tokenizers, **arguments), 7), strict=True):
        assert_same(a, b)
    resumed = tf_batches(
        records, tokenizers, start_step=5, process_index=1, process_count=2, **arguments
    )
    for a, b in zip(memory[5:], resumed, strict=False):
        half = {name: array[2:] for name, array in flatten(a).items()}
        assert_same(unflatten(half), b)


def test_tf_data_sees_no_accelerator(records, tokenizers):
    next(tf_batches(records, tokenizers, batch_size=1, **OPTIONS))
    import tensorflow as tf

    assert {d.device_type for d in tf.config.get_visible_devices()} == {"CPU"}


@pytest.mark.parametrize("ahead", ["", "stream = prefetch_to_device(stream, lambda batch: batch)"])
def test_a_program_that_uses_tf_data_ends(folder, tokenizers, ahead):
    base = Path(tokenizers.tokenizer.name_or_path).parent
    code = (
        "from data_pipeline.loader import *\n"
        "from data_pipeline.manifest import read_manifest\n"
        f"tokenizers = Tokenizers.from_pretrained({str(base)!r})\n"
        f"records = read_manifest({str(folder)!r})\n"
        "stream = tf_batches(records, tokenizers, batch_size=4, seed=0, size=128)\n"
        f"{ahead}\n"
        "next(stream)\n"
        "raise SystemExit(5)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=300).returncode == 5


def test_memory_loader_imports_no_heavy_library(folder):
    code = (
        "import sys, data_pipeline.loader, data_pipeline.manifest, data_pipeline.faces\n"
        f"data_pipeline.manifest.read_manifest({str(folder)!r})\n"
        "heavy = {'tensorflow', 'torch', 'diffusers', 'skimage', 'insightface', 'jax'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("make", [batches, tf_batches])
def test_undecodable_pictures_are_replaced_and_counted(records, tokenizers, caplog, make):
    bad = [r.image for r in records if r.identity == "bert"][:2]
    for path in bad:
        with open(path, "wb") as file:
            file.write(b"broken")
    with caplog.at_level(logging.WARNING):
        stream = make(records, tokenizers, batch_size=6, **OPTIONS)
        first = take(stream, 6)
    assert sorted(stream.source.skipped) == sorted(bad)
    for path in bad:
        assert sum(path in line for line in caplog.messages) == 1
    for a, b in zip(first, batches(records, tokenizers, batch_size=6, **OPTIONS), strict=False):
        assert_same(a, b)
    good = [r for r in records if r.image not in bad]
    for batch in first[:2]:
        for row in range(6):
            example = unflatten({name: array[row] for name, array in flatten(batch).items()})
            target_of(example, good)
            references_of(example, good)


@pytest.mark.parametrize("make", [batches, tf_batches])
def test_no_picture_decodes(records, tokenizers, make):
    stream = make(records, tokenizers, batch_size=2, **OPTIONS)
    for record in records:
        with open(record.image, "wb") as file:
            file.write(b"broken")
    with pytest.raises(ImageError, match="no target of 12 has a reference; first cause"):
        next(stream)


def test_unusable_captions_are_found_before_the_first_step(records, tokenizers):
    late = replace(records[-1], caption="a " * 73 + "man img")
    with pytest.raises(PromptError, match=r"1 captions.*\n.*carl_5\.png.*too late"):
        batches([*records[:-1], late], tokenizers, batch_size=1, **OPTIONS)


def test_sets_that_cannot_serve(records, tokenizers):
    with pytest.raises(ValueError, match="no records"):
        batches([], tokenizers, batch_size=1, **OPTIONS)
    with pytest.raises(ValueError, match="1 identities have no second picture"):
        batches(records[1:], tokenizers, batch_size=1, **OPTIONS)
    with pytest.raises(ValueError, match="background"):
        batches(records, tokenizers, batch_size=1, streams=("text", "mood"), **OPTIONS)


def test_cache_is_limited(records, tokenizers):
    source = ExampleSource(records, tokenizers, cache_bytes=12_000, **OPTIONS)
    for n in range(12):
        source.example(n)
    kept = sum(array.nbytes for array in source._kept.values())
    assert 0 < kept <= 12_000 and kept + source._free_bytes == 12_000


def test_crops_can_be_central(records, tokenizers):
    source = ExampleSource(records, tokenizers, random_crop=False, **OPTIONS)
    for n in range(12):
        h, w, top, left, *_ = source.example(n)["time_ids"]
        assert top == (round(16 * h / min(h, w)) - 16) // 2
        assert left == (round(16 * w / min(h, w)) - 16) // 2


# ---------------------------------------------------------------- prefetch_to_device


def test_prefetch_keeps_order_and_ends():
    assert list(prefetch_to_device(iter(range(20)), lambda x: x * x, depth=3)) == [
        x * x for x in range(20)
    ]


def test_prefetch_runs_ahead_by_depth_only():
    made = []
    ahead = prefetch_to_device(itertools.count(), lambda x: made.append(x) or x, depth=2)
    assert next(ahead) == 0
    deadline = time.time() + 5
    while len(made) < 4 and time.time() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)
    assert made == [0, 1, 2, 3]  # handed out, two waiting, one in the thread's hand
    ahead.close()


@pytest.mark.parametrize("place", ["iterator", "put"])
def test_prefetch_hands_on_errors_after_what_came_before(place):
    def items():
        yield 1
        yield 2
        if place == "iterator":
            raise KeyError("boom")
        yield 3

    def put(x):
        if x == 3:
            raise KeyError("boom")
        return x

    ahead = prefetch_to_device(items(), put)
    assert [next(ahead), next(ahead)] == [1, 2]
    with pytest.raises(KeyError, match="boom"):
        next(ahead)


@pytest.mark.parametrize("started", [True, False])
def test_prefetch_closes_cleanly(started):
    before = threading.active_count()
    ahead = prefetch_to_device(itertools.count(), lambda x: x)
    if started:
        next(ahead)
    ahead.close()
    assert threading.active_count() == before
    with pytest.raises(StopIteration):
        next(ahead)
