"""The plain fields, alone and in examples."""

from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image as PillowImage

from data_pipeline.examples.batches import batches, tf_batches
from data_pipeline.examples.fields import Call, FaceBox, FieldError, Image, TimeIds
from data_pipeline.examples.source import ExampleSource
from data_pipeline.examples.spatial import ControlImage, Points, Weight
from data_pipeline.pictures.reading import load_image
from data_pipeline.pictures.transforms import plan_crop
from data_pipeline.records.manifest import ManifestError, read_manifest
from data_pipeline.records.schema import Record
from tests.data_pipeline.photographs import rewrite_manifest, target_of

SIZE = 16


def make_call(**inputs):
    """A call for two images of 8 x 12 pixels."""
    time_ids = np.arange(12, dtype=np.float32).reshape(2, 6)
    return Call(["a man", "a dog"], {}, None, time_ids, (8, 12), inputs)


def save(path, pixels):
    path.parent.mkdir(exist_ok=True)
    PillowImage.fromarray(pixels).save(path)
    return str(path)


def repr_of(value):
    return repr(value)[:10]


def with_xp(test):
    return pytest.mark.parametrize("xp", [np, jnp], ids=["numpy", "jax"])(test)


# ---- Target, its numbers and its box -----------------------------------------------------------


@with_xp
def test_the_target_and_its_numbers_stay_where_the_condition_is_dropped(xp):
    call = make_call()
    assert Image().given(call) == FaceBox().given(call) == {}  # only training reads them
    np.testing.assert_array_equal(TimeIds().given(call)["time_ids"], call.time_ids)
    for field in (Image(), TimeIds(), FaceBox()):
        batch = {n: xp.ones((2, *s), d) for n, (s, d) in field.spec((8, 12)).items()}
        assert field.dropped(batch, xp) == {}


# ---- Weight ------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [batches, tf_batches])
def test_weights_come_from_the_manifest(folder, make):
    rewrite_manifest(folder, weight=[0.25, 3, 0])
    records = read_manifest(folder)
    source = ExampleSource(records, (Image(), Weight(), TimeIds()), seed=0, size=SIZE)
    expected = {record.image: 1.0 for record in records}
    expected |= dict(zip((r.image for r in records), (0.25, 3.0, 0.0), strict=False))
    batch = next(make(source, batch_size=12))  # an epoch
    assert batch["example_weight"].dtype == np.float32 and batch["example_weight"].shape == (12,)
    found = {}
    for row in range(12):
        example = {name: array[row] for name, array in batch.items()}
        found[target_of(example, records).image] = float(example["example_weight"])
    assert found == expected


@pytest.mark.parametrize(
    "bad", ["2", True, -0.5, float("nan"), float("inf"), 1e39, 10**400, [1], {"a": 1}], ids=repr_of
)
def test_a_bad_weight_fails_before_the_first_step(folder, bad):
    rewrite_manifest(folder, weight=[1.0, None, bad])
    records = read_manifest(folder)
    with pytest.raises(FieldError, match="1 records cannot be used") as told:
        ExampleSource(records, (Image(), Weight()), seed=0, size=SIZE)
    line = str(told.value).splitlines()[1].strip()
    assert line.startswith(f"{records[2].image}: weight is {bad!r}")
    assert line.endswith("; a finite number, at least 0, is needed")


@with_xp
def test_weight_is_no_condition(xp):
    batch = {"example_weight": xp.ones(2)}
    assert Weight().given(make_call()) == Weight().dropped(batch, xp) == {}


# ---- ControlImage ------------------------------------------------------------------------------


@pytest.fixture
def posed(folder):
    """The folder's records, each with its own image as its pose, under another name."""
    records = read_manifest(folder)
    for record in records:
        name = Path(record.image).name
        (folder / "poses").mkdir(exist_ok=True)
        (folder / "poses" / name).write_bytes(Path(record.image).read_bytes())
    rewrite_manifest(folder, images=[{"pose": f"poses/{Path(r.image).name}"} for r in records])
    return folder


@pytest.mark.parametrize("buckets", [(), ((16, 16), (16, 20))])
def test_a_control_image_is_cut_as_the_target_is(posed, buckets):
    records = read_manifest(posed)
    assert all(Path(record.images["pose"]).parent.name == "poses" for record in records)
    fields = (Image(), ControlImage("pose"), TimeIds())
    source = ExampleSource(records, fields, seed=0, size=SIZE, buckets=buckets)
    places = set()
    for n in range(24):
        example = source.example(n)
        spec = source.spec_of(example["pixel_values"].shape[:2])
        assert (example["pose"].shape, example["pose"].dtype) == spec["pose"]
        np.testing.assert_array_equal(example["pose"], (example["pixel_values"] + 1) / 2)
        assert 0 <= example["pose"].min() < example["pose"].max() <= 1
        places.add(tuple(example["time_ids"][2:4]))
    assert len(places) > 2  # the crops were drawn


def test_a_control_image_may_be_of_another_size(tmp_path):
    """A bright square, in a target of 60 x 80 pixels and in an image of half that size."""
    target, half = np.zeros((60, 80, 3), np.uint8), np.zeros((30, 40, 3), np.uint8)
    target[20:40, 30:60], half[10:20, 15:30] = 255, 255
    images = {"pose": save(tmp_path / "half.png", half)}
    record = Record(save(tmp_path / "whole.png", target), "anna", "a woman", images=images)
    source = ExampleSource([record], (Image(), ControlImage("pose")), seed=0, size=30)
    lefts = set()
    for n in range(8):
        example = source.example(n)
        bright = example["pose"][..., 0] > 0.5
        np.testing.assert_array_equal(bright, example["pixel_values"][..., 0] > 0)
        lefts.add(int(bright.any(axis=0).argmax()))
    assert bright.any() and len(lefts) > 3


def test_missing_control_images_fail_before_the_first_step(posed):
    fields = (Image(), ControlImage("pose"))
    records = read_manifest(posed)

    def refused(record):
        with pytest.raises(FieldError, match="1 records cannot be used") as told:
            ExampleSource([record, *records[1:]], fields, seed=0, size=SIZE)
        line = str(told.value).splitlines()[1].strip()
        assert line.startswith(f"{record.image}: ")
        return line

    for images in (None, {}, {"depth": records[0].images["pose"]}):
        said = refused(replace(records[0], images=images))
        assert said.endswith('no pose image; give "images": {"pose": FILE} in the manifest')
    tall = save(posed / "poses" / "tall.png", np.zeros((90, 40, 3), np.uint8))
    said = refused(replace(records[0], images={"pose": tall}))
    assert said.endswith(
        f"its pose image {tall} has another aspect ratio (40x90 pixels) than the image itself "
        "(40x40)"
    )

    (posed / "poses" / "anna_1.png").unlink()
    with pytest.raises(ManifestError, match=r"1 image files are missing.*\n.*poses/anna_1\.png"):
        read_manifest(posed)


def test_another_aspect_ratio_in_shards_is_reported(posed):
    """Their size is known only when they are read."""
    records = [replace(r, image=f"key {i}") for i, r in enumerate(read_manifest(posed))]
    wide = np.zeros((40, 60, 3), np.uint8)

    def read_image(name):
        return wide if name.startswith("key") else load_image(name)

    fields = (Image(), ControlImage("pose"))
    source = ExampleSource(records, fields, seed=0, size=SIZE, read_image=read_image)
    with pytest.raises(FieldError, match=r"^key \d+: its pose image .*itself \(60x40\)$"):
        source.example(0)


def test_a_control_image_that_does_not_decode_is_skipped(posed):
    records = read_manifest(posed)
    broken = Path(records[3].images["pose"])
    broken.write_bytes(broken.read_bytes()[:200])
    fields = (Image(), ControlImage("pose"), TimeIds())
    source = ExampleSource(records, fields, seed=0, size=SIZE)
    shown = {target_of(source.example(n), records).image for n in range(24)}
    assert shown == {r.image for r in records} - {records[3].image}
    assert list(source.skipped) == [str(broken)]


def test_a_call_gives_control_images():
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, shape, np.uint8) for shape in ((8, 12, 3), (32, 24, 3))]
    field = ControlImage("pose")
    given = field.given(make_call(pose=[images[0], PillowImage.fromarray(images[1])]))["pose"]
    assert given.shape == (2, 8, 12, 3) and given.dtype == np.float32
    np.testing.assert_allclose(given[0], images[0] / 255, atol=1e-6)
    cut = plan_crop((32, 24), None, (8, 12)).cut(images[1])  # 16 x 12, its middle
    np.testing.assert_array_equal(given[1], (cut + 1) / 2)
    with pytest.raises(
        FieldError, match=r"pose: the method reads this image; give pose=\[\.\.\.\]"
    ):
        field.given(make_call(depth=images))


@with_xp
def test_a_dropped_control_image_is_black(xp):
    batch = {"pose": xp.ones((2, 8, 12, 3)), "other": xp.ones(2)}
    dropped = ControlImage("pose").dropped(batch, xp)
    assert list(dropped) == ["pose"] and dropped["pose"].shape == (2, 8, 12, 3)
    assert not dropped["pose"].any()


# ---- Points ------------------------------------------------------------------------------------


def test_landmarks_move_as_the_face_box_does(folder):
    """Four of the five are the box's corners."""
    x0, y0, x1, y1 = box = (10, 12, 26, 31)
    corners = [[x0, y0], [x1, y0], [x1, y1], [x0, y1], [18, 21.5]]
    rewrite_manifest(folder, landmarks=[None if i % 2 else corners for i in range(12)])
    records = [
        replace(record, face_box=box if record.landmarks else None)
        for record in read_manifest(folder)
    ]
    fields = (Image(), Points("landmarks"), TimeIds(), FaceBox())
    source = ExampleSource(records, fields, seed=0, size=SIZE)
    seen, boxes = [], set()
    for n in range(24):
        example = source.example(n)
        points, mask = example["landmarks"], example["landmarks_mask"]
        assert points.shape == (5, 2) and points.dtype == np.float32 and mask.dtype == bool
        marked = target_of(example, records).face_box is not None
        seen.append(marked)
        assert mask.all() == mask.any() == marked
        if not marked:
            assert not points.any() and not example["face_box"].any()
            continue
        x0, y0, x1, y1 = example["face_box"]
        np.testing.assert_array_equal(points[:4], [[x0, y0], [x1, y0], [x1, y1], [x0, y1]])
        np.testing.assert_allclose(points[4], [(x0 + x1) / 2, (y0 + y1) / 2], rtol=1e-5)
        boxes.add((float(x0), float(y0)))
    assert sum(seen) == 12 and len(boxes) > 4


def test_landmarks_match_the_image(tmp_path):
    """A grey dot on each of them; scaled unevenly, 45 x 70 to 22 x 34, and cropped."""
    pixels, points = np.zeros((45, 70, 3), np.uint8), []
    for i, (x, y) in enumerate([(20, 10), (36, 8), (50, 20), (24, 34), (44, 36)]):
        pixels[y - 2 : y + 2, x - 2 : x + 2] = 50 * (i + 1)
        points.append((x, y))
    record = Record(save(tmp_path / "0.png", pixels), "anna", "a woman", landmarks=tuple(points))
    fields = (Image(), Points("landmarks"))
    source = ExampleSource([record], fields, seed=0, size=22, random_crop=False)
    example = source.example(0)
    assert example["landmarks_mask"].sum() >= 4
    y, x = np.mgrid[:22, :22] + 0.5
    for (px, py), inside in zip(example["landmarks"], example["landmarks_mask"], strict=True):
        if inside and 2 < px < 20:
            near = (np.abs(x - px) < 2) & (np.abs(y - py) < 2)
            weight = (example["pixel_values"][..., 0] + 1) * near
            centre = [(weight * x).sum() / weight.sum(), (weight * y).sum() / weight.sum()]
            np.testing.assert_allclose(centre, [px, py], atol=0.3)


def test_points_outside_the_crop_and_hidden_ones_are_masked(tmp_path):
    """An image of 20 x 60 pixels, of which the central 20 x 20 are shown."""
    image = save(tmp_path / "0.png", np.zeros((20, 60, 3), np.uint8))
    xs = [5, 19.9, 20, 25, 39.9, 40, 55, 30, 30, 30, 30, 30]
    ys = [10, 10, 0, 10, 19.9, 10, 10, -0.1, 20, 19, 5, 5]
    inside = [False, False, True, True, True, False, False, False, False, True, True, True]
    points = tuple(zip(xs, ys, strict=True))
    hidden = tuple(i in (3, 11) for i in range(12))

    def make(**known):
        record = Record(image, "anna", "a woman", keypoints=points, **known)
        fields = (Image(), Points("keypoints"), Points("landmarks"))
        source = ExampleSource([record], fields, seed=0, size=20, random_crop=False)
        return source.example(0)

    example = make()
    np.testing.assert_allclose(example["keypoints"], np.array(points) - [20, 0], rtol=1e-6)
    assert example["keypoints_mask"].tolist() == inside
    assert not example["landmarks_mask"].any()
    seen = make(visibility=tuple(not h for h in hidden))["keypoints_mask"]
    assert seen.tolist() == [i and not h for i, h in zip(inside, hidden, strict=True)]
    # Only keypoints have visibility.
    landmarks = ((25, 5), (26, 5), (27, 5), (28, 5), (70, 5))
    example = make(visibility=(False,) * 12, landmarks=landmarks)
    assert example["landmarks_mask"].tolist() == [True] * 4 + [False]
    assert not example["keypoints_mask"].any()


def test_a_call_gives_points():
    points = np.arange(20).reshape(2, 5, 2)
    given = Points("landmarks").given(make_call(landmarks=points.tolist()))
    np.testing.assert_array_equal(given["landmarks"], points)
    assert given["landmarks"].dtype == np.float32
    inside = (points[..., 0] < 12) & (points[..., 1] < 8)  # images of 8 x 12 pixels
    np.testing.assert_array_equal(given["landmarks_mask"], inside)
    with pytest.raises(FieldError, match=r"landmarks: the method reads them; give landmarks="):
        Points("landmarks").given(make_call())
    with pytest.raises(FieldError, match=r"of shape \(2, 5, 2\): \(2, 12, 2\) is needed"):
        Points("keypoints").given(make_call(keypoints=points))
    with pytest.raises(ValueError, match="'ears': a record has landmarks and keypoints"):
        Points("ears")


@with_xp
def test_no_point_is_visible_without_the_condition(xp):
    field = Points("landmarks")
    batch = {n: xp.ones((2, *s), d) for n, (s, d) in field.spec((8, 12)).items()}
    dropped = field.dropped(batch, xp)
    assert list(dropped) == ["landmarks_mask"] and not dropped["landmarks_mask"].any()
