"""Polygons and discs are OpenCV's, pixel for pixel."""

import numpy as np
import pytest

from data_pipeline.pose import raster

cv2 = pytest.importorskip("cv2")

COLOUR = (40, 80, 160)
SIZE = (47, 61)  # height, width


def assert_same_ellipse(centre, axes, degrees, size=SIZE):
    theirs = cv2.ellipse2Poly(centre, axes, degrees, 0, 360, 1)
    ours = raster.ellipse_polygon(centre, axes, degrees)
    if len(ours) > 1:  # OpenCV repeats a single point
        np.testing.assert_array_equal(ours, theirs, err_msg=str((centre, axes, degrees)))
    wanted, found = np.zeros((2, *size, 3), np.uint8)
    cv2.fillConvexPoly(wanted, theirs, COLOUR)
    raster.fill_polygon(found, ours, COLOUR)
    assert np.array_equal(found, wanted), (centre, axes, degrees, (found != wanted).sum())


def test_ellipses_of_all_directions():
    for degrees in range(-180, 181):
        assert_same_ellipse((30, 23), (7 * degrees % 23, (1, 2, 4, 12)[degrees % 4]), degrees)


def test_ellipses_without_extent():
    for degrees in (-180, -90, -45, 0, 37, 90, 180):
        for axes in ((0, 0), (0, 4), (9, 0), (1, 1)):
            assert_same_ellipse((30, 23), axes, degrees)


def test_ellipses_that_the_border_cuts():
    rng = np.random.default_rng(0)
    for _ in range(300):
        centre = rng.integers((-40, -40), (101, 87)).tolist()
        axes = int(rng.integers(0, 120)), int(rng.choice([1, 4, 8, 60]))
        assert_same_ellipse(tuple(centre), axes, int(rng.integers(-180, 181)))


def test_ellipses_of_large_images():
    rng = np.random.default_rng(1)
    for _ in range(12):
        centre = tuple(rng.integers(-200, 1300, 2).tolist())
        axes = int(rng.integers(100, 900)), int(rng.choice([4, 12]))
        assert_same_ellipse(centre, axes, int(rng.integers(-180, 181)), (1024, 1152))


def test_discs():
    rng = np.random.default_rng(2)
    for radius in (*range(13), 40):
        places = [(30, 23), *rng.integers((-20, -20), (81, 67), (12, 2)).tolist()]
        for x, y in places:
            wanted, found = np.zeros((2, *SIZE, 3), np.uint8)
            cv2.circle(wanted, (x, y), radius, COLOUR, -1)
            raster.fill_disc(found, (x, y), radius, COLOUR)
            assert np.array_equal(found, wanted), (x, y, radius)
