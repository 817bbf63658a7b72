"""InstantID's picture of five points is its own code's (tests/goldens/published)."""

import numpy as np
import pytest

from data_pipeline.pose.five_points import COLOURS, draw_kps
from data_pipeline.pose.limbs import Widths
from tests.helpers.published_goldens import golden

CASES = ("plain", "tilted", "upside_down", "profile_close", "cut_by_border", "right_border")


@pytest.mark.parametrize("case", CASES)
def test_pixels_are_instantid_s(case):
    stored = golden("instantid_draw_kps")[1]
    points, wanted = stored[f"in/kps_{case}"], stored[f"out/image_{case}"]
    found = draw_kps(points, *wanted.shape[:2])
    assert found.dtype == np.uint8 and np.array_equal(found, wanted)


def test_widths_and_faults():
    points = np.array([(20, 20), (44, 20), (32, 32), (24, 44), (40, 44)])
    thin = draw_kps(points, 64, 64, Widths(1, 1))
    assert [tuple(thin[y, x]) for x, y in points] == list(COLOURS)
    assert thin.any(2).sum() < draw_kps(points, 64, 64).any(2).sum() / 4
    with pytest.raises(ValueError, match=r"shape \(4, 2\): \(5, 2\) is needed"):
        draw_kps(points[:4], 64, 64)
    with pytest.raises(ValueError, match="a joint at"):
        draw_kps(points * np.nan, 64, 64)
