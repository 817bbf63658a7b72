"""Skeletons: OpenCV's pixels, missing joints, several people, widths; COCO's joints as body-18."""

import colorsys
import math

import numpy as np
import pytest

from data_pipeline.pose.body18 import COLOURS, LIMBS, NAMES, from_coco17, inside, to_coco17
from data_pipeline.pose.limbs import Widths, widths_for
from data_pipeline.pose.skeleton import draw_body18

# A standing person in an image of 200 x 120 pixels (height, width).
STANDING = np.array(
    [
        *[(60, 30), (60, 50), (45, 51), (40, 75), (38.6, 99), (75, 50), (81.5, 74), (84, 98)],
        *[(51, 100), (50, 135), (49, 170), (69, 100), (70, 134.9), (72, 171)],
        *[(56, 26), (64, 26), (52, 29), (68, 29)],
    ]
)
SIZE = (200, 120)
ALL = np.ones((1, 18), bool)


def by_opencv(people, seen, height, width, half_width=4, radius=4):
    cv2 = pytest.importorskip("cv2")
    image = np.zeros((height, width, 3), np.uint8)
    for joints, there in zip(people, seen, strict=True):
        for (a, b), colour in zip(LIMBS, COLOURS, strict=False):
            if there[a] and there[b]:
                (x0, y0), (x1, y1) = joints[a], joints[b]
                centre = int(np.mean([x0, x1])), int(np.mean([y0, y1]))
                axes = int(math.hypot(x0 - x1, y0 - y1) / 2), half_width
                angle = int(math.degrees(math.atan2(y0 - y1, x0 - x1)))
                polygon = cv2.ellipse2Poly(centre, axes, angle, 0, 360, 1)
                cv2.fillConvexPoly(image, polygon, [int(c * 0.6) for c in colour])
        for (x, y), shown, colour in zip(joints, there, COLOURS, strict=True):
            if shown:
                cv2.circle(image, (int(x), int(y)), radius, colour, -1)
    return image


def test_colours_go_round_the_wheel():
    """OpenPose's 18 colours are hues, 20 degrees apart."""
    hues = [colorsys.rgb_to_hsv(*(c / 255 for c in colour))[0] for colour in COLOURS]
    np.testing.assert_allclose(hues, np.arange(18) / 18)
    assert {joint for limb in LIMBS for joint in limb} == set(range(len(NAMES)))


def test_pixels_are_opencv_s():
    rng = np.random.default_rng(0)
    assert np.array_equal(draw_body18([STANDING], ALL, *SIZE), by_opencv([STANDING], ALL, *SIZE))
    for count in (1, 2, 3):
        for _ in range(3):
            people = STANDING * rng.uniform(0.3, 2, (count, 1, 2)) + rng.normal(
                0, 9, (count, 18, 2)
            )
            seen = rng.random((count, 18)) > 0.2
            for half_width, radius in ((4, 4), (1, 1), (12, 4)):
                found = draw_body18(people, seen, *SIZE, Widths(half_width, radius))
                wanted = by_opencv(people, seen, *SIZE, half_width, radius)
                assert found.dtype == np.uint8 and np.array_equal(found, wanted)


def test_limbs_are_dim_and_joints_are_not():
    image = draw_body18([STANDING], ALL, *SIZE)
    for (x, y), colour in zip(STANDING, COLOURS, strict=True):
        assert tuple(image[int(y), int(x)]) == colour
    assert tuple(image[152, 49]) == (0, 153, 102)  # halfway from the right knee to the ankle
    assert tuple(image[117, 69]) == (0, 102, 153)  # and from the left hip to the knee
    assert set(map(tuple, image.reshape(-1, 3))) == {
        (0, 0, 0),
        *COLOURS,
        *(tuple(c * 3 // 5 for c in colour) for colour in COLOURS[: len(LIMBS)]),
    }


def test_missing_joints_drop_their_limbs_and_discs():
    seen = ALL.copy()
    seen[0, 9] = False  # the right knee
    there = STANDING.copy()
    there[9] = np.nan  # wherever it is
    image = draw_body18([there], seen, *SIZE)
    assert not image[108:164, 40:57].any()  # neither of its limbs
    assert tuple(image[170, 49]) == COLOURS[10] and tuple(image[134, 70]) == COLOURS[12]
    assert not draw_body18([STANDING], ~ALL, *SIZE).any()
    assert not draw_body18(np.zeros((0, 18, 2)), np.zeros((0, 18)), *SIZE).any()


def test_a_later_person_is_in_front():
    aside = STANDING + (3, 0)
    both = draw_body18([STANDING, aside], ALL.repeat(2, 0), *SIZE)
    last = draw_body18([aside], ALL, *SIZE)
    shown = last.any(2)
    assert np.array_equal(both[shown], last[shown]) and both.any(2).sum() > shown.sum()


def test_faults():
    with pytest.raises(ValueError, match=r"shape \(18, 2\), seen of \(1, 18\): \(n, 18, 2\)"):
        draw_body18(STANDING, ALL, *SIZE)
    for bad in (np.nan, np.inf, -1e7):
        with pytest.raises(ValueError, match=r"a joint at \(60.0, .*\): give pixels"):
            draw_body18([np.where(np.arange(36).reshape(18, 2) == 1, bad, STANDING)], ALL, *SIZE)


def test_widths():
    assert widths_for(512, 512) == widths_for(256, 1024) == widths_for(1024, 1024) == (4, 4)
    assert widths_for(64, 64) == (1, 1) and widths_for(128, 192) == (2, 2)
    assert widths_for(16, 300) == (1, 1) and widths_for(255, 255) == (3, 3)
    found = {side: widths_for(side, side, "xinsir") for side in (64, 499, 500, 1024, 3000, 9000)}
    assert found == {64: (1, 1), 499: (4, 4), 500: (8, 4), 1024: (12, 4), 3000: (20, 4)} | {
        9000: (28, 4)
    }
    with pytest.raises(ValueError, match="style 'thick': give openpose or xinsir"):
        widths_for(64, 64, "thick")


# ---- other forms of joints ---------------------------------------------------------------------

COCO = "nose,left eye,right eye,left ear,right ear,left shoulder,right shoulder,left elbow,"
COCO += "right elbow,left wrist,right wrist,left hip,right hip,left knee,right knee,left ankle,"
COCO = (COCO + "right ankle").split(",")


def test_coco_joints_by_their_names():
    joints = np.arange(34.0).reshape(17, 2)
    points, seen = from_coco17(joints, np.ones(17))
    assert seen.all()
    for i, name in enumerate(NAMES):
        if name != "neck":
            assert points[i].tolist() == joints[COCO.index(name)].tolist()
    assert points[1].tolist() == ((joints[5] + joints[6]) / 2).tolist()


def test_scores():
    scores = np.full((2, 17), 0.3)
    scores[0, COCO.index("left elbow")] = 0.29
    scores[1, [5, 6]] = 0.31
    seen = from_coco17(np.zeros((2, 17, 2)), scores)[1]
    named = [{name for name, there in zip(NAMES, row, strict=True) if not there} for row in seen]
    assert named == [{"left elbow", "neck"}, set()]  # of the neck, both have to be above it
    assert not from_coco17(np.zeros((17, 2)), np.full(17, 0.3), threshold=0.5)[1].any()


def test_what_records_hold():
    keypoints, landmarks = np.arange(24.0).reshape(12, 2), np.arange(100, 110.0).reshape(5, 2)
    visible = np.arange(12) != 3  # not the right elbow
    points, seen = from_coco17(*to_coco17(keypoints, visible, landmarks))
    missing = [name for name, there in zip(NAMES, seen, strict=True) if not there]
    assert missing == ["right elbow", "right ear", "left ear"]
    found = dict(zip(NAMES, points.tolist(), strict=True))
    assert found["left shoulder"] == [0, 1] and found["right ankle"] == [22, 23]
    # The person's right eye is at the left of the image.
    assert found["right eye"] == [100, 101] and found["left eye"] == [102, 103]
    assert found["nose"] == [104, 105]
    seen = from_coco17(*to_coco17(keypoints))[1]
    missing = [name for name, there in zip(NAMES, seen, strict=True) if not there]
    assert missing == ["nose", *NAMES[14:]]


def test_inside():
    points = [(0, 0), (9.9, 4.9), (10, 4), (9, 5), (-0.1, 2)]
    assert inside(points, (5, 10)).tolist() == [True, True, False, False, False]
