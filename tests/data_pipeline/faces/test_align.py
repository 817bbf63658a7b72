"""Alignment against scikit-image's estimate and warp, and both conventions of pixel positions."""

import numpy as np
import pytest
from PIL import Image
from skimage.data import astronaut
from skimage.transform import SimilarityTransform, warp

from data_pipeline.drawing.people import examples
from data_pipeline.faces.align import TEMPLATE, align_face, align_faces, similarity

# Eyes, nose and mouth of skimage's astronaut, located by hand.
FACE = np.array([(204, 107), (239, 105), (224, 127), (209, 147), (239, 145)], float)


def skimage_align(image, landmarks, size):
    """Landmarks are relative to pixel centres, as in all of scikit-image."""
    transform = SimilarityTransform.from_estimate(landmarks, TEMPLATE * size / 112)
    return warp(image, transform.inverse, output_shape=(size, size), order=1, preserve_range=True)


def moved(landmarks, angle, scale, shift):
    turn = scale * np.exp(1j * np.deg2rad(angle))
    points = (landmarks @ [1, 1j]) * turn + complex(*shift)
    return np.stack([points.real, points.imag], -1)


@pytest.mark.parametrize("size", [112, 40, 224])
@pytest.mark.parametrize(
    ("angle", "scale", "shift"),
    [(0, 1, (0, 0)), (35, 0.7, (60, 10)), (-80, 3.5, (300, 200)), (180, 0.4, (90, 90))],
)
def test_as_scikit_image_does(size, angle, scale, shift):
    rng = np.random.default_rng(0)
    landmarks = moved(FACE, angle, scale, shift) + rng.normal(0, 2 * scale, (5, 2))
    image = astronaut()
    got = align_face(image, landmarks, size, origin="centre")
    expected = skimage_align(image.astype(float), landmarks, size)
    assert got.shape == (size, size, 3) and got.dtype == np.uint8
    # Half a step of rounding to whole numbers, and the difference of the two bilinear sums.
    assert np.abs(got - expected).max() < 0.51
    exact = align_face(image.astype(np.float32), landmarks, size, origin="centre")
    assert np.abs(exact - expected).max() < 1e-3


def test_similarity_is_umeyamas():
    rng = np.random.default_rng(1)
    points = rng.normal(0, 30, (20, 5, 2))
    turn, shift = similarity(points, TEMPLATE)
    for i, row in enumerate(points):
        theirs = SimilarityTransform.from_estimate(row, TEMPLATE)
        assert turn[i] == pytest.approx(theirs.scale * np.exp(1j * theirs.rotation))
        assert shift[i] == pytest.approx(complex(*theirs.translation))


def test_template_itself_stays_in_place():
    image = np.random.default_rng(0).integers(0, 256, (112, 112, 3), np.uint8)
    np.testing.assert_array_equal(align_face(image, TEMPLATE, origin="centre"), image)
    # The same points, relative to the outer corner.
    np.testing.assert_array_equal(align_face(image, TEMPLATE + 0.5), image)


def test_origins_differ_by_half_a_pixel():
    """A face at twice the template's scale: the wrong origin moves it by a quarter of a pixel."""
    ramp = np.tile(np.arange(300.0)[None, :, None], (300, 1, 3))
    landmarks = 2 * TEMPLATE + 30
    inside = np.s_[40:70, 40:70, 0]
    centre = align_face(ramp, landmarks, origin="centre")[inside]
    corner = align_face(ramp, landmarks, origin="corner")[inside]
    np.testing.assert_allclose(centre, np.tile(2 * np.arange(40, 70) + 30.0, (30, 1)))
    np.testing.assert_allclose(centre - corner, 0.5)


def test_black_outside_and_blended_at_the_edge():
    image = np.full((10, 10, 1), 200, np.uint8)
    crop = align_face(image, TEMPLATE - 50.5, origin="centre")[..., 0]
    # The image's pixel (0, 0) is at (50.5, 50.5) in the crop.
    assert (crop[51:60, 51:60] == 200).all()
    assert crop[50, 55] == crop[55, 50] == crop[60, 55] == 100 and crop[50, 50] == 50
    crop[50:61, 50:61] = 0
    assert not crop.any()


def test_landmarks_of_drawn_people_count_from_the_outer_corner():
    """A dot painted on each landmark ends up where the fit puts it; a wrong origin would move it by
    about two pixels of the crop."""
    drawn = examples("in_train", [0, 1, 2], [0, 1, 2], size=64, framing_weights=(1, 0, 0))
    landmarks = np.floor(drawn.landmarks) + 0.5  # pixel centres, so that a dot is one pixel
    dots = np.zeros((3, 64, 64, 1), np.float32)
    for i, points in enumerate(landmarks):
        for x, y in points:
            dots[i, int(y), int(x)] = 1
    size = 224
    crops = align_faces(dots, landmarks, size)[..., 0]
    turn, shift = similarity(landmarks - 0.5, TEMPLATE * 2)
    for i, points in enumerate(landmarks - 0.5):
        radius = 0.5 * abs(turn[i])
        for place in points @ [1, 1j] * turn[i] + shift[i]:
            y, x = np.mgrid[:size, :size]
            near = np.abs(x + 1j * y - place) < radius
            weight = crops[i] * near
            centre = (weight * (x + 1j * y)).sum() / weight.sum()
            assert abs(centre - place) < 0.3


def test_batch_as_one_by_one():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (3, 60, 90, 3), np.uint8)
    landmarks = TEMPLATE * 0.5 + rng.normal(0, 2, (3, 5, 2)) + [[[5, 0]], [[20, 3]], [[-9, 4]]]
    together = align_faces(images, landmarks, 48)
    for image, points, crop in zip(images, landmarks, together, strict=True):
        np.testing.assert_array_equal(align_face(image, points, 48), crop)


def test_a_pil_image_is_accepted():
    image = astronaut()
    crop = align_face(Image.fromarray(image), FACE)
    np.testing.assert_array_equal(crop, align_face(image, FACE))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"landmarks": np.zeros((5, 2))}, "coincide"),
        ({"landmarks": FACE * np.nan}, "not finite"),
        ({"landmarks": FACE + [np.inf, 0]}, "not finite"),
        ({"landmarks": FACE[:4]}, "5, 2"),
        ({"image": np.zeros((9, 9))}, "h, w, c"),
        ({"origin": "top"}, "origin"),
        ({"size": 0}, "size=0"),
    ],
)
def test_what_cannot_be_aligned_is_refused(change, named):
    with pytest.raises(ValueError, match=named):
        align_face(**{"image": astronaut(), "landmarks": FACE, **change})
