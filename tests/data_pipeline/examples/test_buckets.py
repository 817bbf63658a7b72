from collections import Counter

import numpy as np
import pytest
from PIL import Image

from data_pipeline.examples.batches import batches, tf_batches
from data_pipeline.examples.buckets import (
    BucketError,
    Turns,
    bucket_shapes,
    check_shapes,
    family,
    nearest,
)
from data_pipeline.examples.fields import flatten
from data_pipeline.pictures.reading import load_image
from data_pipeline.pictures.transforms import plan_crop
from data_pipeline.records.manifest import read_manifest
from tests.data_pipeline.photographs import photograph_source, take

NAMES = ("16x16", "28x16", "16x28")
SHAPES = bucket_shapes(NAMES)


@pytest.fixture
def records(folder):
    """Of carl's six images two become wide and one tall; the others are nearly square."""
    records = read_manifest(folder)
    rng = np.random.default_rng(0)
    for i, (height, width) in {0: (40, 60), 1: (44, 70), 2: (66, 44)}.items():
        path = folder / f"carl_{i}.png"
        Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(path)
    return records


@pytest.fixture
def open_source(records, tokenizers):
    """Makes a source in buckets; a step must be as long as its batches."""

    def open_source(batch_size, **options):
        options = {"buckets": SHAPES, **options}
        return photograph_source(records, tokenizers, batch_size=batch_size, **options)

    return open_source


def same(a, b):
    a, b = flatten(a), flatten(b)
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("side, count", [(512, 9), (1024, 17)])
def test_families(side, count):
    shapes = family(side)
    assert len(shapes) == count and (side, side) in shapes
    for height, width in shapes:
        assert height % 64 == width % 64 == 0 and (width, height) in shapes
        assert 0.87 * side**2 <= height * width <= side**2
        assert 1 / 4 <= width / height <= 4
    # Some of SDXL's training shapes (arXiv 2307.01952, appendix I).
    if side == 1024:
        assert {(512, 2048), (704, 1472), (768, 1344), (832, 1216), (896, 1152)} < set(shapes)


def test_names():
    assert bucket_shapes(()) == ()
    assert bucket_shapes(("512",)) == bucket_shapes("512") == tuple(family(512))
    assert bucket_shapes(("640x384", "64x64")) == ((64, 64), (384, 640))
    assert len(bucket_shapes(("512", "1024", "512x512"))) == 9 + 17
    for wrong in ("513", "64", "64x", "0x64", "64*64", "-64x64"):
        with pytest.raises(BucketError, match="config.buckets"):
            bucket_shapes((wrong,))
    check_shapes(SHAPES, 4)
    with pytest.raises(BucketError, match="28x16.*multiples of 16"):
        check_shapes(SHAPES, 16)


def test_assignment():
    both = bucket_shapes(("512", "1024"))

    def goes_to(height, width):
        return both[nearest((height, width), both)]

    assert goes_to(3000, 3000) == goes_to(1024, 1024) == (1024, 1024)
    assert goes_to(2000, 3000) == (832, 1216)  # 3:2; 1.46 is nearer to it than 1.75
    assert goes_to(3000, 2000) == (1216, 832)
    # Not large enough for 1024: the smaller family rather than an enlarged image.
    assert goes_to(1000, 1000) == goes_to(512, 512) == (512, 512)
    assert goes_to(600, 800) == (448, 576)
    assert goes_to(400, 400) == (512, 512)  # too small for any
    assert goes_to(100, 2000) == (256, 1024)
    for shape in family(512) + family(1024):
        assert goes_to(*shape) == shape


def test_the_crop_in_a_bucket():
    """time_ids and face box by hand: 40 x 60 scaled by 0.5 to 20 x 30, cropped to 16 x 30."""
    crop = plan_crop((40, 60), (10, 4, 20, 14), (16, 30))
    assert crop.resized == (20, 30) and (crop.top, crop.left) == (2, 0)
    assert crop.time_ids.tolist() == [40, 60, 2, 0, 16, 30]
    assert crop.face_box.tolist() == [5, 0, 10, 5]
    # A face lower down moves the crop with it; it stays whole.
    low = plan_crop((40, 60), (10, 28, 20, 38), (16, 30))
    assert low.top == 3 and low.face_box.tolist() == [5, 11, 10, 16]
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    assert low.cut(image).shape == (16, 30, 3)
    # For a part of a photograph they describe the photograph.
    part = plan_crop(
        (40, 60), None, (16, 30), original_size=(400, 600), original_crop=(100, 100, 400, 300)
    )
    assert part.time_ids.tolist() == [400, 600, 2 + 10, 10, 16, 30]


@pytest.mark.parametrize("shape", [(40, 60), (61, 37), (16, 24), (300, 20), (17, 17)])
@pytest.mark.parametrize("target", SHAPES)
def test_every_picture_just_covers_its_bucket(shape, target):
    crop = plan_crop(shape, None, target)
    assert all(r >= t for r, t in zip(crop.resized, target, strict=True))
    assert any(r == t for r, t in zip(crop.resized, target, strict=True))
    ratio = crop.resized[1] / crop.resized[0] / (shape[1] / shape[0])
    assert abs(ratio - 1) < 0.5 / min(crop.resized) + 1e-9


@pytest.mark.parametrize(
    "counts", [[5], [3, 3], [100, 7, 1, 53], [1, 1, 1, 1000], list(range(1, 18))]
)
def test_turns_keep_to_the_shares(counts):
    turns, taken = Turns(counts), np.zeros(len(counts))
    shares = np.array(counts) / sum(counts)
    for step in range(2 * sum(counts)):
        bucket, before = turns[step]
        assert before == taken[bucket]
        taken[bucket] += 1
        assert np.abs(taken - (step + 1) * shares).max() < 1
    assert taken.tolist() == [2 * n for n in counts]
    assert Turns(counts)[step] == (bucket, before)  # queried directly for the last


def test_a_batch_is_of_one_bucket_and_none_is_lost(records, open_source):
    """In two rounds every image is a target twice; 12 images, 2 rows."""
    stream = batches(open_source(2, random_crop=False), batch_size=2)
    members = {
        tuple(stream.source.buckets[k]): len(m) for k, m in enumerate(stream.source._members)
    }
    assert members == {(16, 16): 9, (16, 28): 2, (28, 16): 1}
    seen, shapes = Counter(), Counter()
    for batch in take(stream, 12):
        shape = batch["pixel_values"].shape[1:3]
        shapes[shape] += 1
        for pixels, time_ids in zip(batch["pixel_values"], batch["time_ids"], strict=True):
            assert time_ids[4:].tolist() == list(shape)
            seen[record_of(records, pixels, time_ids)] += 1
    assert shapes == {shape: count for shape, count in members.items()}
    assert set(seen.values()) == {2} and len(seen) == 12


def record_of(records, pixels, time_ids):
    for record in records:
        image = load_image(record.image)
        if image.shape[:2] == tuple(time_ids[:2]):
            crop = plan_crop(image.shape[:2], record.face_box, pixels.shape[:2])
            if np.array_equal(crop.cut(image), pixels):
                return record.image
    raise AssertionError("the target is none of the records")


def test_resumption_and_processes(open_source):
    whole = take(batches(open_source(4), batch_size=4), 12)
    assert len({batch["pixel_values"].shape for batch in whole}) == 3
    later = batches(open_source(4), batch_size=4, start_step=5)
    assert all(map(same, take(later, 7), whole[5:]))
    shares = [
        batches(open_source(4), batch_size=4, process_index=i, process_count=2) for i in range(2)
    ]
    for batch, *parts in zip(whole, *shares, strict=False):
        joined = {
            name: np.concatenate([flatten(part)[name] for part in parts]) for name in flatten(batch)
        }
        assert same(batch, joined)
    state = later.state(5)
    later.check(state)
    plain = batches(open_source(4, buckets=()), batch_size=4, start_step=5)
    for stream, taken in ((plain, state), (later, plain.state(5))):
        with pytest.raises(ValueError, match="buckets"):
            stream.check(taken)


@pytest.mark.parametrize("make", [batches, tf_batches])
def test_source_and_batches_must_agree_on_the_batch_size(open_source, make):
    with pytest.raises(ValueError, match="batches of 4 from a source .* batch_size is 2"):
        make(open_source(2), batch_size=4)
    make(open_source(2, buckets=()), batch_size=4)


def test_tf_data_gives_the_same(open_source):
    pytest.importorskip("tensorflow")
    stream = tf_batches(open_source(2), batch_size=2, workers=2)
    assert all(map(same, take(batches(open_source(2), batch_size=2), 8), stream))


def test_a_picture_that_does_not_decode_is_in_no_bucket(open_source, folder):
    path = folder / "carl_2.png"  # the only tall one
    path.write_bytes(path.read_bytes()[:200])
    source = open_source(1)
    shapes = {source.example(n)["pixel_values"].shape[:2] for n in range(12)}
    assert str(path) in source.skipped and (28, 16) not in source.shapes
    assert shapes == set(source.shapes)


def test_without_buckets_nothing_changes(records, tokenizers):
    """The order is that of a loader without buckets: (seed, 0, epoch) alone decides."""
    source = photograph_source(records, tokenizers, random_crop=False)
    order = np.random.default_rng((3, 0, 0)).permutation(12)
    for n in range(12):
        example = source.example(n)
        found = record_of(records, example["pixel_values"], example["time_ids"])
        assert found == records[order[n]].image
