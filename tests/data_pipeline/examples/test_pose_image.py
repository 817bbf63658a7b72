"""PoseImage: drawn of keypoints, or the record's own image; cut as the target is."""

import logging
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image as PillowImage

from data_pipeline.drawing.people import examples
from data_pipeline.examples.fields import Call, FieldError, Image, TimeIds
from data_pipeline.examples.pose_image import PoseImage
from data_pipeline.examples.source import ExampleSource
from data_pipeline.examples.spatial import ControlImage, Points
from data_pipeline.pictures.reading import load_image
from data_pipeline.pose.body18 import COLOURS, NAMES
from data_pipeline.pose.limbs import Widths
from data_pipeline.records.drawn import records_of
from data_pipeline.records.schema import Record

# 100 x 60 pixels (height, width): shoulders, elbows, wrists, hips, knees, ankles; left first.
BODY = ((40, 30), (20, 30), (46, 42), (14, 42), (50, 54), (10, 54))
BODY += ((36, 56), (24, 56), (37, 72), (23, 72), (38, 90), (22, 90))
FACE = ((26, 14), (34, 14), (30, 18), (27, 23), (33, 23))


def save(path, height, width, level=0):
    PillowImage.fromarray(np.full((height, width, 3), level, np.uint8)).save(path)
    return str(path)


@pytest.fixture
def record(tmp_path):
    image = save(tmp_path / "0.png", 100, 60)
    return Record(image, "anna", "a woman", keypoints=BODY, landmarks=FACE)


def source_of(record, *fields, size=30, **options):
    return ExampleSource([record], (Image(), *fields), seed=0, size=size, **options)


def coloured(picture, colour):
    """(x, y), the middle of the pixels of a colour in a picture 0..1; None without any."""
    rows, columns = np.nonzero((np.rint(picture * 255) == colour).all(2))
    return (columns.mean() + 0.5, rows.mean() + 0.5) if len(rows) else None


def test_joints_are_where_the_crop_moves_them(record):
    """A target of 120 pixels shows 60 of 100 rows at twice their size, in drawn places."""
    source = source_of(record, PoseImage(), Points("keypoints"), TimeIds(), size=120)
    body = [NAMES.index(f"{side} {part}") for part in ("shoulder", "elbow", "wrist", "hip", "knee",
            "ankle") for side in ("left", "right")]  # fmt: skip
    tops = set()
    for n in range(12):
        example = source.example(n)
        picture = example["pose"]
        assert picture.dtype == np.float32 and picture.shape == (120, 120, 3)
        assert (picture.shape, picture.dtype) == source.spec_of((120, 120))["pose"]
        tops.add(example["time_ids"][2])
        for joint, at, seen in zip(
            body, example["keypoints"], example["keypoints_mask"], strict=True
        ):
            place = coloured(picture, COLOURS[joint])
            if seen and 2 < at[1] < 118:
                np.testing.assert_allclose(place, np.floor(at) + 0.5, atol=0.01)
            elif at[1] < -2 or at[1] > 122:
                assert place is None  # beyond the crop
    assert len(tops) > 4


def test_limbs_leave_the_crop_and_hidden_joints_have_none(record):
    """Central rows of 20 to 80: the shins leave the target, the head is outside."""
    options = {"random_crop": False, "size": 120}
    picture = source_of(record, PoseImage(), **options).example(0)["pose"]
    assert coloured(picture, COLOURS[0]) is None  # the nose
    assert tuple(np.rint(255 * picture[-1, 75])) == (0, 51, 153)  # the left shin, at the border
    hidden = replace(record, visibility=tuple(i != 10 for i in range(12)))
    picture = source_of(hidden, PoseImage(), **options).example(0)["pose"]
    assert not picture[-1].any(1)[60:].any() and picture[-1].any()
    # An ankle below the image's lower edge is not drawn: no detector would have found it there.
    below = replace(record, keypoints=(*BODY[:10], (38, 101), BODY[11]))
    again = source_of(below, PoseImage(), **options).example(0)["pose"]
    assert np.array_equal(again, picture)
    # Nor is the neck, if a shoulder is beyond it.
    aside = replace(record, keypoints=((61, 30), *BODY[1:]))
    picture = source_of(aside, PoseImage(), **options).example(0)["pose"]
    assert coloured(picture, COLOURS[1]) is None and coloured(picture, COLOURS[2]) is not None


def test_its_own_image_counts(record, tmp_path):
    own = replace(record, images={"pose": save(tmp_path / "pose.png", 50, 30, level=51)})
    found = source_of(own, PoseImage()).example(0)
    wanted = source_of(own, ControlImage("pose")).example(0)
    assert np.array_equal(found["pose"], wanted["pose"])
    np.testing.assert_allclose(found["pose"], 0.2, atol=1e-6)
    alone = replace(own, keypoints=None)
    assert np.array_equal(source_of(alone, PoseImage()).example(0)["pose"], found["pose"])
    square = replace(own, images={"pose": save(tmp_path / "square.png", 40, 40)})
    with pytest.raises(FieldError, match="another aspect ratio"):
        source_of(square, PoseImage())
    # Under another name it is drawn.
    drawn = source_of(own, PoseImage("skeleton")).example(0)["skeleton"]
    assert drawn.max() == 1 and np.array_equal(
        drawn, source_of(record, PoseImage()).example(0)["pose"]
    )


def test_a_record_without_a_pose_is_refused(record):
    with pytest.raises(FieldError, match="1 records cannot be used") as told:
        source_of(replace(record, keypoints=None), PoseImage())
    line = str(told.value).splitlines()[1].strip()
    assert line == (
        f'{record.image}: no pose image and no keypoints; give "images": {{"pose": FILE}} or '
        '"keypoints" in the manifest, which data_pipeline.manifest --pose finds'
    )


def test_a_record_of_which_nothing_is_visible_is_named(record, caplog):
    nobody = replace(record, visibility=(False,) * 12, landmarks=None)
    with caplog.at_level(logging.WARNING):
        source = source_of(nobody, PoseImage())
    assert "1 records show no joint of the body; their pose image has no limbs" in caplog.text
    assert not source.example(0)["pose"].any()


def test_widths_and_styles(record):
    def pixels(size, *given):
        return (
            source_of(record, PoseImage("pose", *given), size=size).example(0)["pose"] > 0
        ).sum()

    assert pixels(64) == pixels(64, "openpose", Widths(1, 1)) < pixels(64, "openpose", Widths(4, 4))
    assert pixels(512) == pixels(512, "openpose", Widths(4, 4)) < pixels(512, "xinsir")
    with pytest.raises(ValueError, match="style 'thick'"):
        PoseImage(style="thick")


def test_drawn_people_have_one(tmp_path):
    """At 64 pixels the joints of the miniature's people are where their colours are."""
    drawn = examples("out_of_train", np.arange(8), np.arange(8), framing_weights=(0, 1, 1))
    for i, record in enumerate(records_of(drawn, [str(i) for i in range(8)])):
        PillowImage.fromarray(drawn.images[i]).save(tmp_path / f"{i}.png")
        record = replace(record, image=str(tmp_path / f"{i}.png"))
        picture = source_of(record, PoseImage(), size=64).example(0)["pose"]
        shoulder = coloured(picture, COLOURS[5])  # the left one
        assert np.abs(np.subtract(shoulder, record.keypoints[0])).max() < 1.6


def test_a_validation_and_a_call(record):
    field = PoseImage()
    entry = field.from_record(record, load_image, (40, 40))
    assert entry.dtype == np.uint8 and entry.shape == (40, 40, 3)
    made = source_of(record, field, size=40, random_crop=False).example(0)["pose"]
    np.testing.assert_allclose(entry / 255, made, atol=1e-6)
    time_ids = np.zeros((1, 6), np.float32)
    given = field.given(Call(["a man"], {}, None, time_ids, (40, 40), {"pose": [entry]}))
    np.testing.assert_allclose(given["pose"][0], made, atol=1e-6)
    assert field.from_record(replace(record, keypoints=None), load_image, (40, 40)) is None
    with pytest.raises(FieldError, match=r"give pose=\[\.\.\.\]"):
        field.given(Call(["a man"], {}, None, time_ids, (40, 40), {}))
    for xp in (np, jnp):
        dropped = field.dropped({"pose": xp.ones((2, 8, 8, 3))}, xp)
        assert list(dropped) == ["pose"] and not dropped["pose"].any()
