"""Aligned faces: of a call's Face, of its embeddings, of records with and without landmarks."""

import numpy as np
import pytest

from data_pipeline.examples.fields import Call, FieldError
from data_pipeline.examples.identity.faces import Faces
from data_pipeline.faces.align import TEMPLATE, align_face
from data_pipeline.faces.detectors import Detection, Detector
from data_pipeline.faces.face import Face
from data_pipeline.faces.find import NoFaceFound
from data_pipeline.faces.locate import locate_face
from data_pipeline.pictures.transforms import clip_normalise
from data_pipeline.records.schema import Record

SIZE = 40
PHOTO = np.random.default_rng(0).integers(0, 256, (150, 170, 3), np.uint8)
PLACES = TEMPLATE + (31.5, 20.5)


def call(*people):
    rows = len(people)
    return Call(["a man"] * rows, {}, list(people), np.zeros((rows, 6), np.float32), (64, 64))


def test_a_face_with_landmarks_is_aligned_and_a_square_is_aligned_already():
    field = Faces(SIZE, embedding=3)
    aligned = align_face(PHOTO, PLACES, SIZE)
    given = field.given(call([[Face(PHOTO, PLACES), aligned]]))
    np.testing.assert_array_equal(given["id_pixel_values"][0, 0], clip_normalise(aligned))
    np.testing.assert_array_equal(given["id_pixel_values"][0, 1], clip_normalise(aligned))
    assert given["id_mask"].tolist() == [[True, True, False, False]]
    assert not given["id_embeds_mask"].any()


def test_embeddings_of_several_people_stand_at_their_own_places():
    field = Faces(SIZE, embedding=3)
    one, two = [1.0, 2, 3], [4.0, 5, 6]
    given = field.given(call([[Face(embedding=one)], [Face(embedding=two), PHOTO[:99, :99]]]))
    assert given["id_embeds"].shape == (1, 8, 3)
    assert given["id_embeds"][0, [0, 4]].tolist() == [one, two]
    assert np.flatnonzero(given["id_embeds_mask"][0]).tolist() == [0, 4]
    assert np.flatnonzero(given["id_mask"][0]).tolist() == [0, 4, 5]


def test_places_outlast_a_dropped_condition():
    field = Faces(SIZE, embedding=3, places=True)
    given = field.given(call([[Face(embedding=[1.0, 2, 3])]]))
    assert given["id_places"].tolist() == given["id_mask"].tolist() == [[True] + [False] * 3]
    assert set(field.dropped(given, np)) == {"id_mask"}
    assert field.spec((64, 64))["id_places"] == field.spec((64, 64))["id_mask"]
    assert "id_places" not in Faces(SIZE).spec((64, 64))


@pytest.mark.parametrize(
    ("face", "said"),
    [
        (PHOTO, "170x150 pixels are no aligned face.*locate_face"),
        (Face(PHOTO, PLACES[:4]), r"landmarks of shape \(4, 2\)"),
        (Face(PHOTO, PLACES * np.nan), "five finite"),
        (Face(embedding=[1.0, 2]), r"shape \(2,\); \(3,\) finite"),
        (Face(), "without an image"),
    ],
    ids=["photograph", "four", "nan", "embedding", "empty"],
)
def test_what_is_no_face_is_said(face, said):
    with pytest.raises(FieldError, match="reference 1 of prompt 2: .*" + said):
        Faces(SIZE, embedding=3).given(call([[PHOTO[:50, :50]]], [[face]]))


def test_records_without_landmarks_are_cropped_and_counted():
    field = Faces(SIZE)
    known = Record("1.png", "anna", "", landmarks=tuple(map(tuple, PLACES.tolist())))
    boxed = Record("2.png", "anna", "", face_box=(40.0, 30.0, 90.0, 80.0))
    one, two = field.from_records([known, boxed], lambda name: PHOTO, (64, 64))
    crops = field.given(call([[one, two]]))["id_pixel_values"][0]
    np.testing.assert_array_equal(crops[0], clip_normalise(align_face(PHOTO, PLACES, SIZE)))
    assert not np.array_equal(crops[1], crops[0]) and crops[1].any()
    for record in (known, boxed):
        field.check(record, 1)
    (line,) = field.notes()
    assert line.startswith("1 records have no landmarks")
    assert field.notes() == []


class Two(Detector):
    """A detector that finds the same two faces, the second of which is larger."""

    name = "two"

    def find(self, images):
        small = Detection((0, 0, 20, 20), PLACES, 0.9)
        return [[small, Detection((60, 60, 120, 120), PLACES + 7, 0.9)]] * len(images)


def test_the_largest_face_is_taken_or_the_one_at_the_box():
    assert np.array_equal(locate_face(PHOTO, detector=Two()).landmarks, PLACES + 7)
    small = locate_face(PHOTO, detector=Two(), box=(1, 1, 30, 30))
    assert np.array_equal(small.landmarks, PLACES)
    with pytest.raises(NoFaceFound, match="at --face-box"):
        locate_face(PHOTO, detector=Two(), box=(130, 130, 140, 140))
