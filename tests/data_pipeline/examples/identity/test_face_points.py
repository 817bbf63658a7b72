"""Five points as a picture: what a call may give, and a record's, cropped like its target."""

import numpy as np
import pytest
from PIL import Image

from data_pipeline.examples.fields import Call, FieldError, TimeIds
from data_pipeline.examples.fields import Image as Target
from data_pipeline.examples.identity.face_points import FacePoints
from data_pipeline.examples.source import ExampleSource
from data_pipeline.faces.face import Face
from data_pipeline.pictures.transforms import plan_crop, resize
from data_pipeline.pose.five_points import PUBLISHED, draw_kps
from data_pipeline.pose.limbs import Widths
from data_pipeline.records.schema import Record
from tests.helpers.published_goldens import golden

POINTS = np.array([(30.0, 30), (60, 34), (44, 48), (32, 62), (58, 66)])
SIZE = (96, 128)


def given(*entries):
    call = Call(["a man"] * len(entries), {}, None, None, SIZE, {"face_points": list(entries)})
    return FacePoints().given(call)["face_points"]


def drawn(points, size=SIZE, widths=PUBLISHED):
    return draw_kps(points, *size, widths).astype(np.float32) / 255


def test_points_and_the_picture_of_them_are_the_same():
    _, arrays = golden("instantid_draw_kps")
    points, image = arrays["in/kps_tilted"], arrays["out/image_tilted"]
    found = given(points, points.tolist(), image, Face(np.zeros((*SIZE, 3), np.uint8), points))
    assert found.dtype == np.float32 and found.shape == (4, *SIZE, 3)
    for own in found:
        np.testing.assert_allclose(own, image / 255, atol=1e-6)


def test_a_face_of_another_size_moves_as_its_photograph_would():
    photo = np.zeros((120, 80, 3), np.uint8)
    places = plan_crop((120, 80), None, SIZE).move(POINTS)
    assert np.array_equal(given(Face(photo, POINTS))[0], drawn(places))


def test_several_faces_stand_in_one_picture():
    other = POINTS + (60, 8)
    found = given([POINTS, Face(np.zeros((*SIZE, 3), np.uint8), other)])[0]
    one, two = drawn(POINTS), drawn(other)
    seen = two.any(-1)
    assert np.array_equal(found[seen], two[seen]) and np.array_equal(found[~seen], one[~seen])


def test_nobody_is_black_and_so_is_the_dropped_one():
    call = Call(["a man"], {}, None, None, SIZE)
    assert not FacePoints().given(call)["face_points"].any()
    batch = {"face_points": given(POINTS)}
    assert not FacePoints().dropped(batch, np)["face_points"].any()


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        (Face(np.zeros((9, 9, 3), np.uint8)), "a Face without landmarks"),
        (Face(None, POINTS), "a Face without an image"),
        ([POINTS[:4]], r"landmarks of shape \(4, 2\)"),
        ([POINTS * np.nan], "five finite"),
    ],
)
def test_what_does_not_say_where_is_refused(entry, said):
    with pytest.raises(FieldError, match="face_points 2: .*" + said):
        given(POINTS, entry)


@pytest.fixture
def record(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(np.zeros((200, 120, 3), np.uint8)).save(path)
    return Record(str(path), "anna", "a man", landmarks=(POINTS * 1.5).tolist())


def test_a_record_s_points_are_drawn_on_it_and_cropped_with_it(record):
    thin = Widths(1, 3)
    fields = Target(), FacePoints(widths=thin), TimeIds()
    source = ExampleSource([record], fields, seed=0, size=60)
    half = resize(draw_kps(POINTS * 1.5, 200, 120, thin), (100, 60)) / 255
    tops = set()
    for n in range(6):
        example = source.example(n)
        tops.add(top := int(example["time_ids"][2]))
        np.testing.assert_allclose(example["face_points"], half[top : top + 60], atol=1e-6)
    assert len(tops) > 1  # each with the crop of its own
    field, black = FacePoints(widths=thin), np.zeros((200, 120, 3), np.uint8)
    plain = field.from_record(record, lambda name: black, (60, 60))  # the middle
    assert np.abs(plain / 255 - half[20:80]).max() < 0.01


def test_records_without_landmarks_are_named(record):
    bare = Record(record.image, "anna", "a man")
    with pytest.raises(FieldError, match="no face_points image and no landmarks.*--detector yunet"):
        FacePoints().check(bare, 3)
    assert FacePoints().from_record(bare, lambda name: np.zeros((9, 9, 3)), (60, 60)) is None
