"""Streams of batches, with TensorFlow and without: equal, resumed, and shared."""

import json
import logging
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.examples.batches import batches, open_loader, tf_batches
from data_pipeline.examples.fields import flatten, unflatten
from data_pipeline.examples.source import ExampleSource
from data_pipeline.examples.spatial import ControlImage
from data_pipeline.pictures.reading import ImageError
from tests.data_pipeline.photographs import (
    assert_same,
    photograph_fields,
    photograph_source,
    references_of,
    take,
    target_of,
)


@pytest.fixture
def open_source(records, tokenizers):
    """Makes a source of the folder's records that has cached nothing yet."""

    def open_source(records=records, **options):
        return photograph_source(records, tokenizers, **options)

    return open_source


def test_batch_has_the_documented_arrays(open_source):
    flat = flatten(next(batches(open_source(streams=("text", "background")), batch_size=3)))
    spec = {
        "pixel_values": ((16, 16, 3), np.float32),
        "input_ids/text": ((2, 77), np.int32),
        "input_ids/background": ((2, 77), np.int32),
        "class_tokens_mask": ((77,), np.bool_),
        "id_pixel_values": ((4, 14, 14, 3), np.float32),
        "id_mask": ((4,), np.bool_),
        "time_ids": ((6,), np.float32),
        "face_box": ((4,), np.float32),
    }
    assert list(flat) == list(spec)
    for name, (shape, dtype) in spec.items():
        assert flat[name].shape == (3, *shape) and flat[name].dtype == dtype, name


def test_specs_say_what_examples_are(open_source):
    source = open_source(streams=("text", "background"))
    (spec,) = source.specs
    assert spec == source.spec_of((16, 16))
    example = source.example(2)
    assert list(example) == list(spec)
    for name, (shape, dtype) in spec.items():
        assert example[name].shape == shape and example[name].dtype == dtype, name


def test_loaders_by_name():
    assert open_loader("memory") is batches and open_loader("tf_data") is tf_batches
    with pytest.raises(ValueError, match="config.loader='torch': use tf_data or memory"):
        open_loader("torch")


def test_resuming_gives_the_same_batches(open_source):
    whole = take(batches(open_source(), batch_size=4), 6)
    rest = take(batches(open_source(), batch_size=4, start_step=4), 2)
    for a, b in zip(whole[4:], rest, strict=True):
        assert_same(a, b)


@pytest.mark.parametrize("make", [batches, tf_batches])
def test_saved_and_restored_exactly(open_source, make):
    stream = make(open_source(), batch_size=4, start_step=2)
    assert stream.start_step == 2
    take(stream, 3)
    state = json.loads(json.dumps(stream.state()))
    assert state["step"] == 5 and stream.state(4)["step"] == 4
    after = take(stream, 3)
    restored = make(open_source(), batch_size=4, start_step=state["step"])
    restored.check(state)
    for a, b in zip(after, restored, strict=False):
        assert_same(a, b)


def test_another_position_is_refused(records, open_source):
    state = batches(open_source(), batch_size=4, start_step=5).state()

    def check(records=records, batch_size=4, start_step=5, **changes):
        source = open_source(records, **changes)
        batches(source, batch_size=batch_size, start_step=start_step).check(state)

    moved = [replace(r, image=r.image.replace("anna", "elsewhere")) for r in records]
    check(moved, size=32)
    with pytest.raises(ValueError, match="step was 5 and is 0"):
        check(start_step=0)
    with pytest.raises(ValueError, match="seed was 3 and is 4; batch_size was 4 and is 2"):
        check(seed=4, batch_size=2)
    with pytest.raises(ValueError, match="records was"):
        check([replace(records[0], background="a lake"), *records[1:]])
    check([replace(records[0], extra={"weight": 2}), *records[1:]])  # no field reads it


def test_further_pictures_may_have_moved_as_well(records, tokenizers, open_source):
    """But a run whose fields read another kind of additional image is a different run."""

    def fingerprint(name, folder):
        given = [replace(r, images={name: f"{folder}/1.png"}) for r in records]
        fields = (*photograph_fields(tokenizers), ControlImage(name))
        return ExampleSource(given, fields, seed=3, size=16).fingerprint

    assert fingerprint("pose", "here") == fingerprint("pose", "there")
    assert fingerprint("pose", "here") != fingerprint("depth", "here")
    assert fingerprint("pose", "here") != open_source().fingerprint


def test_workers_make_the_same_batches(open_source):
    alone = take(batches(open_source(), batch_size=4), 4)
    for make in (batches, tf_batches):
        for a, b in zip(alone, make(open_source(), batch_size=4, workers=3), strict=False):
            assert_same(a, b)


def test_two_processes_share_a_batch(open_source):
    arguments = {"batch_size": 4, "start_step": 1}
    whole = take(batches(open_source(), **arguments), 3)
    parts = [
        take(batches(open_source(), process_index=i, process_count=2, **arguments), 3)
        for i in range(2)
    ]
    for step in range(3):
        halves = [flatten(parts[i][step]) for i in range(2)]
        assert not np.array_equal(halves[0]["pixel_values"], halves[1]["pixel_values"])
        joined = {name: np.concatenate([h[name] for h in halves]) for name in halves[0]}
        assert_same(whole[step], unflatten(joined))


@pytest.mark.parametrize(
    ("index", "count", "message"), [(0, 3, "evenly over 3 processes"), (2, 2, "not below 2")]
)
def test_batches_that_do_not_divide_are_refused(open_source, index, count, message):
    with pytest.raises(ValueError, match=message):
        batches(open_source(), batch_size=4, process_index=index, process_count=count)


def test_tf_data_gives_the_same_batches(open_source):
    streams = ("text", "body")
    memory = take(batches(open_source(streams=streams), batch_size=4), 7)
    made = take(tf_batches(open_source(streams=streams), batch_size=4), 7)
    for a, b in zip(memory, made, strict=True):
        assert_same(a, b)
    second_half = {"process_index": 1, "process_count": 2}
    resumed = tf_batches(open_source(streams=streams), batch_size=4, start_step=5, **second_half)
    for a, b in zip(memory[5:], resumed, strict=False):
        half = {name: array[2:] for name, array in flatten(a).items()}
        assert_same(unflatten(half), b)


def test_tf_data_sees_no_accelerator(open_source):
    next(tf_batches(open_source(), batch_size=1))
    import tensorflow as tf

    assert {d.device_type for d in tf.config.get_visible_devices()} == {"CPU"}


AHEAD = "stream = prefetch_to_device(stream, lambda batch: batch)"


@pytest.mark.parametrize("ahead", [pytest.param("", marks=pytest.mark.slow), AHEAD])
def test_a_program_that_uses_tf_data_ends(folder, tokenizers, ahead):
    base = Path(tokenizers.tokenizer.name_or_path).parent
    code = (
        "from data_pipeline.examples.batches import tf_batches\n"
        "from data_pipeline.examples.prefetch import prefetch_to_device\n"
        "from data_pipeline.records.manifest import read_manifest\n"
        "from data_pipeline.prompts import Tokenizers\n"
        "from tests.data_pipeline.photographs import photograph_source\n"
        f"tokenizers = Tokenizers.from_pretrained({str(base)!r})\n"
        f"records = read_manifest({str(folder)!r})\n"
        "source = photograph_source(records, tokenizers, size=128, id_size=224)\n"
        "stream = tf_batches(source, batch_size=4)\n"
        f"{ahead}\n"
        "next(stream)\n"
        "raise SystemExit(5)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=300).returncode == 5


def test_memory_loader_imports_no_heavy_library(folder):
    modules = ["batches", "conditions", "fields", "pose_image", "prefetch", "source", "spatial"]
    names = ", ".join(f"data_pipeline.examples.{module}" for module in modules)
    code = (
        f"import sys, {names}, data_pipeline.records.manifest, data_pipeline.faces.find\n"
        f"data_pipeline.records.manifest.read_manifest({str(folder)!r})\n"
        "heavy = {'tensorflow', 'torch', 'diffusers', 'skimage', 'insightface', 'jax'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("make", [batches, tf_batches])
def test_undecodable_pictures_are_replaced_and_counted(records, open_source, caplog, make):
    bad = [r.image for r in records if r.identity == "bert"][:2]
    for path in bad:
        with open(path, "wb") as file:
            file.write(b"broken")
    with caplog.at_level(logging.WARNING):
        stream = make(open_source(), batch_size=6)
        first = take(stream, 6)
    assert sorted(stream.source.skipped) == sorted(bad)
    assert stream.report() == ["images skipped because they do not decode: 2"]
    for path in bad:
        assert sum(path in line for line in caplog.messages) == 1
    for a, b in zip(first, batches(open_source(), batch_size=6), strict=False):
        assert_same(a, b)
    good = [r for r in records if r.image not in bad]
    for batch in first[:2]:
        for row in range(6):
            example = {name: array[row] for name, array in flatten(batch).items()}
            target_of(example, good)
            references_of(example, good)


@pytest.mark.parametrize("make", [batches, tf_batches])
def test_no_picture_decodes(records, open_source, make):
    stream = make(open_source(), batch_size=2)
    for record in records:
        with open(record.image, "wb") as file:
            file.write(b"broken")
    with pytest.raises(ImageError, match="no target of 12 has a reference; first cause"):
        next(stream)
