"""Bodies as references: where joints are, what is cut out, with and without keypoints."""

import numpy as np
import pytest

from data_pipeline.examples.conditions import References
from data_pipeline.examples.fields import Call, FieldError, Image, TimeIds
from data_pipeline.examples.identity.bodies import JOINTS, Bodies, Body, body_box, points_of
from data_pipeline.examples.source import ExampleSource
from data_pipeline.examples.targets import CaptionIds, TargetPoints
from data_pipeline.records.schema import Record
from data_pipeline.records.sources import open_records

SIDE = 16
DATA = "people:in_train?identities=3&pictures=4&size=32&framing=figures"


def corners(visible=JOINTS):
    """Joints from (4, 2) to (8, 10) and whether they are visible."""
    joints = np.linspace([4, 2], [8, 10], JOINTS)
    return joints, np.arange(JOINTS) < visible


def test_joints_are_where_they_are_in_the_image_made_square():
    joints, visible = corners(11)
    points = points_of(joints, visible, (20, 10))
    np.testing.assert_allclose(points[0], [(4 - 5) / 10, (2 - 10) / 10, 1], atol=1e-6)
    assert (points[11] == 0).all() and points[:11, 2].all()
    joints[3] = [10.5, 5]  # outside of the image
    assert (points_of(joints, None, (20, 10))[3] == 0).all()
    assert not points_of(None, None, (20, 10)).any()


def test_the_body_is_the_box_around_visible_joints():
    joints, visible = corners(6)
    assert body_box(joints, visible, (20, 20)) == (4, 2, *joints[5])
    assert body_box(joints, None, (20, 20)) == (4, 2, 8, 10)
    for seen in (0, 1):  # they span nothing
        assert body_box(joints, corners(seen)[1], (20, 20)) is None
    # What is outside of the image is neither in the box nor among the points.
    assert body_box(joints, None, (6, 20)) == (4, 2, *joints[(joints[:, 1] <= 6).sum() - 1])
    unknown = np.where(visible[:, None], joints, np.nan)
    assert body_box(unknown, None, (20, 20)) == (4, 2, *joints[5])
    assert np.isfinite(points_of(unknown, None, (20, 20))).all()


@pytest.mark.parametrize(
    ("keypoints", "visibility", "said"),
    [
        ([[0, 0]] * 5, None, r"keypoints of shape \(5, 2\); \(12, 2\) is needed"),
        ([[1, 1]] * 12, [True] * 17, r"visibility of shape \(17,\); \(12,\) is needed"),
        ([[1, 1]] * 11 + [[1, np.nan]], None, "joint 12 of 12 is not finite"),
    ],
)
def test_a_bad_body_of_a_call_is_named(keypoints, visibility, said):
    image = np.zeros((20, 20, 3), np.uint8)
    given = {"bodies": [[Body(image)], [Body(image), Body(image, keypoints, visibility)]]}
    call = Call(["x", "y"], {}, [[[image]], [[image]]], None, (32, 32), given)
    with pytest.raises(FieldError, match=f"bodies, prompt 2, body 2: {said}"):
        Bodies(SIDE).given(call)


def test_a_hidden_joint_of_a_call_need_have_no_place():
    joints = np.full((JOINTS, 2), np.nan)
    joints[:2] = [[2, 3], [8, 12]]
    body = Body(np.zeros((20, 20, 3), np.uint8), joints, np.arange(JOINTS) < 2)
    _, points = Bodies(SIDE)._read(body)
    assert points[:, 2].sum() == 2 and np.isfinite(points).all()


@pytest.fixture(scope="module")
def drawn():
    records, read = open_records(DATA)
    fields = (Image(), References(SIDE), Bodies(SIDE), TimeIds())
    return ExampleSource(records, fields, seed=0, size=32, read_image=read), records, read


def test_an_example_has_the_bodies_of_the_faces_references(drawn):
    source, records, read = drawn
    known = {
        points_of(record.keypoints, record.visibility, (32, 32)).tobytes(): record
        for record in records
    }
    for n in range(6):
        example = source.example(n)
        spec = source.specs[0]
        assert {name: (a.shape, a.dtype) for name, a in example.items()} == spec
        assert np.array_equal(example["body_mask"], example["id_mask"])
        count = example["body_mask"].sum()
        target = min(
            records,
            key=lambda r: np.abs(read(r.image) / 127.5 - 1 - example["pixel_values"]).max(),
        )
        for row in range(count):
            found = known[example["body_points"][row].tobytes()]
            assert found.identity == target.identity and found.image != target.image
        assert not example["body_points"][count:].any()
        assert not example["body_pixel_values"][count:].any()


def test_a_call_gives_what_training_reads(drawn):
    """The same pictures and joints by name; without them the references, and hidden joints."""
    source, records, read = drawn
    field, own = Bodies(SIDE), records[:2]
    bodies = field.from_records(own, read, (32, 32))
    faces = [read(record.image) for record in own]
    call = Call(["a man"], {}, [[faces]], None, (32, 32), {"bodies": [bodies]})
    given = field.given(call)
    assert given["body_mask"].tolist() == [[True, True, False, False]]
    for row, record in enumerate(own):
        crop, points = field.draw_one(source, record)
        assert np.array_equal(given["body_points"][0, row], points)
        wanted = field._read(Body(read(record.image), record.keypoints, record.visibility))[0]
        assert crop.shape == (SIDE, SIDE, 3)
        np.testing.assert_allclose(given["body_pixel_values"][0, row], wanted)
    plain = field.given(Call(["a man"], {}, [[faces]], None, (32, 32)))
    assert plain["body_mask"].sum() == 2 and not plain["body_points"].any()
    assert np.abs(plain["body_pixel_values"][0, :2]).max() > 0.5


def test_two_people_of_a_call_are_adjacent():
    field, images = Bodies(SIDE), list(np.zeros((3, 20, 20, 3), np.uint8))
    people = [[images[:1], images[1:]]]
    given = field.given(Call(["two"], {}, people, None, (32, 32)))
    assert given["body_mask"].tolist() == [[True, *[False] * 3, True, True, False, False]]
    assert given["body_points"].shape == (1, 8, JOINTS, 3)


def test_without_keypoints_the_whole_image_is_the_body(drawn):
    _, records, read = drawn
    plain = [Record(r.image, r.identity, r.caption) for r in records]
    fields, options = (Image(), Bodies(SIDE), TimeIds()), {"seed": 0, "size": 32}
    example = ExampleSource(plain, fields, read_image=read, **options).example(0)
    assert example["body_mask"].any() and not example["body_points"].any()
    hidden = [
        Record(r.image, r.identity, r.caption, keypoints=r.keypoints, visibility=(False,) * JOINTS)
        for r in records
    ]
    other = ExampleSource(hidden, fields, read_image=read, **options)
    for name, array in other.example(0).items():
        assert np.array_equal(array, example[name])


def test_one_image_of_a_person_leaves_nothing_to_condition_on(drawn):
    _, records, read = drawn
    with pytest.raises(ValueError, match="1 identities have no second image to serve"):
        ExampleSource(records[:1], (Image(), Bodies(SIDE)), seed=0, size=32, read_image=read)


def test_what_only_losses_read_is_in_no_call_and_never_dropped(drawn):
    _, records, read = drawn
    said = []

    def encode(text):
        said.append(text)
        return np.arange(7, dtype=np.int32)

    fields = (Image(), TargetPoints("keypoints"), CaptionIds(encode, 7, "img"))
    source = ExampleSource(records, fields, seed=0, size=32, read_image=read)
    example = source.example(0)
    assert example["caption_ids"].tolist() == list(range(7))
    assert "img" not in said[0].split()
    assert any(r.background in said[0] and r.body in said[0] for r in records if r.background)
    call = Call(["a man"], {}, None, None, (32, 32))
    for field in fields[1:]:
        batch = {name: array[None] for name, array in example.items()}
        assert field.given(call) == field.dropped(batch, np) == {}
