import numpy as np
import pytest
from PIL import Image

from data_pipeline.pictures.transforms import (
    clip_crop,
    clip_normalise,
    clip_preprocess,
    resize_and_crop,
    square_face_crop,
)


def picture(height, width, seed=0):
    """Smooth colours and some noise, so that resampling errors show."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    base = np.stack([y, x, 1 - y * x], -1) * 200 + rng.uniform(0, 55, (height, width, 3))
    return base.astype(np.uint8)


@pytest.mark.parametrize("shape", [(50, 50), (61, 97), (120, 45), (28, 28), (28, 90), (300, 200)])
def test_clip_preprocess_equals_transformers(shape):
    from transformers import CLIPImageProcessorPil

    image = picture(*shape)
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}
    )
    expected = processor(Image.fromarray(image), return_tensors="np").pixel_values[0]
    ours = clip_preprocess(image, 28)
    assert ours.shape == (28, 28, 3) and ours.dtype == np.float32
    np.testing.assert_allclose(ours, expected.transpose(1, 2, 0), atol=1e-5)


def test_crops_normalised_into_their_place():
    image = picture(50, 90)
    crop = clip_crop(image, 28)
    assert crop.shape == (28, 28, 3) and crop.dtype == np.uint8
    place = np.full((2, 28, 28, 3), 7, np.float32)
    clip_normalise(crop, out=place[1])
    np.testing.assert_array_equal(place[1], clip_preprocess(image, 28))
    assert (place[0] == 7).all()


def test_face_crop_grows_by_a_fifth_on_each_side():
    image = picture(100, 120)
    crop = square_face_crop(image, (40, 30, 60, 50))
    np.testing.assert_array_equal(crop, image[26:54, 36:64])
    np.testing.assert_array_equal(  # the longer side counts
        square_face_crop(image, (45, 30, 55, 50)), image[26:54, 36:64]
    )
    assert square_face_crop(image, (40, 30, 60, 50), enlarge=0).shape == (20, 20, 3)


def test_face_crop_at_the_edge():
    image = picture(100, 120)
    np.testing.assert_array_equal(square_face_crop(image, (0, 0, 20, 20)), image[:28, :28])
    np.testing.assert_array_equal(square_face_crop(image, (100, 80, 120, 100)), image[-28:, -28:])
    # No room to extend: the largest square within the image.
    np.testing.assert_array_equal(square_face_crop(image, (10, 5, 100, 95)), image[:, 5:105])
    # The face is wider than the image is high: rows repeat, columns do not.
    wide = square_face_crop(image[:40], (10, 0, 90, 40))
    assert wide.shape == (80, 80, 3)
    np.testing.assert_array_equal(wide[20:60], image[:40, 10:90])
    np.testing.assert_array_equal(wide[:20], np.broadcast_to(image[:1, 10:90], (20, 80, 3)))
    with pytest.raises(ValueError, match="empty"):
        square_face_crop(image, (10, 10, 10, 20))


def test_crop_without_resizing_maps_everything():
    image = picture(32, 64)
    pixels, time_ids, box = resize_and_crop(image, (20, 8, 30, 20), 32)
    assert pixels.dtype == time_ids.dtype == box.dtype == np.float32
    np.testing.assert_allclose((pixels + 1) * 127.5, image[:, 16:48], atol=1e-4)
    np.testing.assert_array_equal(time_ids, [32, 64, 0, 16, 32, 32])
    np.testing.assert_array_equal(box, [4, 8, 14, 20])
    _, time_ids, box = resize_and_crop(image, None, 32)
    np.testing.assert_array_equal(box, 0)


def test_resized_box_still_covers_the_marked_patch():
    image = np.zeros((90, 160, 3), np.uint8)
    image[30:60, 100:130] = 255
    pixels, time_ids, box = resize_and_crop(image, (100, 30, 130, 60), 30)
    np.testing.assert_array_equal(time_ids[:2], (90, 160))
    x0, y0, x1, y1 = np.rint(box).astype(int)
    bright = pixels.mean(-1) > 0
    assert bright[y0:y1, x0:x1].all() and bright.sum() == (y1 - y0) * (x1 - x0)


def test_time_ids_describe_the_original_of_a_cropped_image():
    """Cropped and halved before; the offsets are those of the same crop of the whole photograph."""
    photograph = picture(200, 300)
    part = photograph[40:160:2, 100:260:2]  # 60 x 80
    origin = {"original_size": (200, 300), "original_crop": (100, 40, 260, 160)}
    pixels, time_ids, box = resize_and_crop(part, (20, 10, 40, 30), 30, **origin)
    # 30 / 60 of an image of 1 / 2: the photograph at a quarter is 50 x 75.
    np.testing.assert_array_equal(time_ids, [200, 300, 40 / 4, 100 / 4 + 5, 30, 30])
    plain = resize_and_crop(part, (20, 10, 40, 30), 30)
    np.testing.assert_array_equal(plain[1], [60, 80, 0, 5, 30, 30])
    np.testing.assert_array_equal(pixels, plain[0])
    np.testing.assert_array_equal(box, plain[2])
    # Scaled only: the offsets are the same at the training size.
    scaled = resize_and_crop(part, None, 30, original_size=(600, 800))[1]
    np.testing.assert_array_equal(scaled, [600, 800, 0, 5, 30, 30])


def test_random_crops_differ_and_keep_the_face():
    image, rng = picture(40, 200), np.random.default_rng(0)
    lefts = set()
    for _ in range(60):
        pixels, time_ids, box = resize_and_crop(image, (90, 5, 105, 30), 40, rng)
        left = int(time_ids[3])
        lefts.add(left)
        np.testing.assert_array_equal(box, [90 - left, 5, 105 - left, 30])
        assert pixels.shape == (40, 40, 3) and 0 <= left <= 160
    assert len(lefts) > 10 and min(lefts) >= 65 and max(lefts) <= 90
    free = {int(resize_and_crop(image, None, 40, rng)[1][3]) for _ in range(60)}
    assert min(free) < 40 and max(free) > 120


@pytest.mark.parametrize("box", [(0, 0, 100, 40), (-50, -10, 20, 30), (190, 10, 260, 70)])
def test_faces_too_large_or_over_the_edge(box):
    for rng in (None, np.random.default_rng(1)):
        pixels, time_ids, mapped = resize_and_crop(picture(40, 200), box, 40, rng)
        assert pixels.shape == (40, 40, 3) and 0 <= time_ids[3] <= 160
        assert (mapped >= 0).all() and (mapped <= 40).all() and mapped[0] < mapped[2]


def test_box_outside_the_picture_becomes_zeros():
    _, _, box = resize_and_crop(picture(40, 60), (100, 100, 120, 120), 40)
    np.testing.assert_array_equal(box, 0)


@pytest.mark.parametrize("shape", [(33, 50), (50, 33), (511, 700), (7, 100)])
def test_values_and_sizes(shape):
    pixels, time_ids, _ = resize_and_crop(picture(*shape), None, 31, np.random.default_rng(0))
    assert pixels.shape == (31, 31, 3)
    assert -1 <= pixels.min() < pixels.max() <= 1
    np.testing.assert_array_equal(time_ids[[0, 1, 4, 5]], [*shape, 31, 31])
