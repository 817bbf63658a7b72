"""Each condition drops with its reason, value and threshold, and keeps at its threshold."""

import math

import pytest

from data_pipeline.collect.choices import Choice
from data_pipeline.collect.filter import filter_picture, filter_pictures, roll, yaw
from data_pipeline.collect.settings import Filter, Limit
from tests.data_pipeline.collect.made import choice, face

TILTED = ((150.0, 150.0), (210.0, 250.0), (180.0, 220.0), (150.0, 300.0), (200.0, 320.0))
SMALL = (0.0, 0.0, 255.0, 300.0)


@pytest.mark.parametrize(
    ("given", "reason", "value", "threshold"),
    [
        (choice(size=(511, 900)), "side too short", 511, 512),
        (choice(size=(600, 1900)), "too long a strip", 3.167, 3.0),
        (choice(faces=()), "no face", None, None),
        (choice(faces=[face(SMALL)]), "face too small", 255.0, 256),
        (choice(faces=[face(score=0.5)]), "face unsure", 0.5, 0.6),
        (choice(faces=[face(sharpness=9.0)]), "blurred", 9.0, 10.0),
        (choice(faces=[face(dark=0.61)]), "too dark", 0.61, 0.6),
        (choice(faces=[face(bright=0.5)]), "too bright", 0.5, 0.4),
        (choice(faces=[face(landmarks=TILTED)]), "head tilted", 59.04, 45.0),
        (choice(faces=[face(), face((450.0, 100.0, 750.0, 300.0))]), "several faces", 0.625, 0.5),
        (choice(fault="cannot be decoded"), "unreadable", "cannot be decoded", None),
    ],
)
def test_why_a_picture_goes(given, reason, value, threshold):
    found = filter_picture(given, Filter())
    assert (found.reason, found.value, found.threshold) == (reason, value, threshold)
    assert (found.stage, found.key) == ("filter", given.picture.key)


def test_at_the_threshold_a_picture_stays():
    exactly = choice(size=(512, 1536), faces=[face((0, 0, 256, 300), score=0.6, sharpness=10.0)])
    assert isinstance(filter_picture(exactly, Filter()), Choice)
    assert isinstance(filter_picture(exactly, Filter(min_side=513)), type(choice().drop("", "")))


def test_none_switches_everything_off():
    off = Filter(*[None] * 11)
    odd = choice(size=(10, 900), faces=[face(SMALL, dark=1.0, sharpness=0.0, landmarks=TILTED)])
    assert isinstance(filter_picture(odd, off), Choice)


def test_the_faces_that_are_left_are_those_that_pass():
    several = choice(faces=[face(SMALL), face(), face((500.0, 0.0, 760.0, 262.0))])
    kept, _ = filter_pictures([several], Filter(max_second=None))
    assert kept[0].faces == (1, 2) and kept[0].face == 1


def test_scores_of_plug_ins():
    nude = choice(scores={"nsfw": 0.9})
    found = filter_picture(nude, Filter(limits=(Limit("nsfw", 0.5),)))
    assert (found.reason, found.value, found.threshold) == ("nsfw too high", 0.9, 0.5)


def test_no_number_passes_no_limit():
    found = filter_picture(choice(scores={"nsfw": math.nan}), Filter(limits=(Limit("nsfw", 0.5),)))
    assert (found.reason, found.value) == ("nsfw too high", "nan")
    assert filter_picture(choice(faces=[face(score=math.nan)]), Filter()).reason == "face unsure"


def test_grey():
    assert filter_picture(choice(), Filter(min_colour=41.0)).reason == "grey"


def test_turns_of_the_head():
    assert roll(face()) == 0 and yaw(face()) == 0
    eyes_and_nose = ((0.0, 0.0), (10.0, 10.0), (10.0, 10.0), (0.0, 0.0), (0.0, 0.0))
    turned = face(landmarks=eyes_and_nose)
    assert roll(turned) == 45 and yaw(turned) == 0.5
