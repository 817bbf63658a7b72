"""The meaning of requests, and training examples made from images with attributes."""

import numpy as np
import pytest

from data_pipeline.attributes.labelled import (
    AttributeData,
    LabelledExamples,
    LabelledImages,
    choose_attributes,
)
from data_pipeline.attributes.vocabulary import (
    UNKNOWN,
    RequestError,
    Vocabulary,
    normalise_name,
    read_value,
)

HATS = ("hat=none", "hat=cap", "hat=Top Hat")
FACES = Vocabulary(("glasses", "Long_Hair", *HATS, "beard"), {"hat": HATS})


def said(request, vocabulary=FACES):
    values, known = vocabulary.parse(request)
    assert values.dtype == known.dtype == np.float32
    return [float(v) if k else None for v, k in zip(values, known, strict=True)]


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        ("", [None] * 6),
        ("glasses=1", [1, None, None, None, None, None]),
        (" Glasses = yes , beard=NO,", [1, None, None, None, None, 0]),
        ("long-hair=0.25", [None, 0.25, None, None, None, None]),
        ("LONG HAIR=-1,glasses=unknown,beard=?", [None, 0, None, None, None, None]),
        ("hat=cap", [None, None, 0, 1, 0, None]),
        ("hat=top-hat,glasses=0", [0, None, 0, 0, 1, None]),
        ("hat=none", [None, None, 1, 0, 0, None]),  # a member of that name takes precedence
        ("hat=unknown", [None] * 6),
        ("hat=cap,hat=cap,glasses=1,glasses=1.0", [1, None, 0, 1, 0, None]),
    ],
)
def test_parsed_requests(request_, expected):
    assert said(request_) == expected


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ("glases=1", r"no 'glases'; there are glasses, .*hat=MEMBER; did you mean glasses\?"),
        ("moustache=1", r"no 'moustache'; there are glasses, Long_Hair, beard, hat=MEMBER$"),
        ("hats=cap", r"did you mean hat=MEMBER\?"),
        ("glasses", "'glasses': write NAME=VALUE, such as glasses=1"),
        (
            "glasses=maybe",
            "glasses=maybe is not a value; write 1, 0, a fraction between, or unknown",
        ),
        ("glasses=1.5", "not a value"),
        ("glasses=", None),
        ("hat=fez", "hat=fez is unknown; there are none, cap, Top Hat"),
        ("glasses=1,glasses=0", "contradict themselves: glasses is given as both 1 and 0"),
        ("beard=0.3,beard=0.4", "both 0.3 and 0.4; give it once"),
        ("hat=cap,hat=none", "hat=none and hat=cap exclude each other; ask for one hat"),
    ],
)
def test_invalid_requests_are_refused(request_, message):
    if message is None:  # no message
        assert said(request_) == [None] * 6
        return
    with pytest.raises(RequestError, match=message) as error:
        FACES.parse(request_)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "request_", ["", "glasses=1", "glasses=0,Long_Hair=0.5,hat=Top Hat,beard=1", "hat=none"]
)
def test_a_description_is_read_as_what_it_describes(request_):
    values, known = FACES.parse(request_)
    assert FACES.describe(values, known) == request_
    np.testing.assert_array_equal(FACES.parse(FACES.describe(values, known)), (values, known))


def test_values_of_data_are_described():
    assert (
        FACES.describe(np.array([1, UNKNOWN, 0, 1, 0, 0], np.int8)) == "glasses=1,hat=cap,beard=0"
    )
    digits = Vocabulary.of_classes("digit", list("0123456789"))
    rows = digits.values_of_classes([3, 0])
    assert rows.dtype == np.int8 and rows.shape == (2, 10)
    assert [digits.describe(row) for row in rows] == ["digit=3", "digit=0"]
    assert said("digit=3", digits) == rows[0].tolist()


def test_choosing_attributes():
    chosen, places = FACES.choose(["beard", "HAT", "glasses", "beard"])
    assert chosen == Vocabulary(("beard", *HATS, "glasses"), {"hat": HATS})
    assert places == [5, 2, 3, 4, 0]
    assert FACES.choose(["long hair"]) == (Vocabulary(("Long_Hair",)), [1])
    with pytest.raises(RequestError, match=r"no 'beart'.*did you mean beard\?"):
        FACES.choose(["glasses", "beart"])
    # Alone it could not be requested.
    with pytest.raises(RequestError, match="hat=cap is one of a group; choose hat"):
        FACES.choose(["hat=cap"])


def test_a_data_set_of_chosen_attributes():
    values = np.array([[1, 0, 1], [1, 1, UNKNOWN], [0, 0, 0]], np.int8)
    part = LabelledImages(np.zeros((3, 4, 5, 1), np.uint8), values, "x")
    unseen = np.array([[0, 1, 0], [0, 1, 1], [1, 1, 1]], np.int8)
    data = AttributeData(Vocabulary(("a", "b", "c")), part, part, unseen=unseen)
    chosen = choose_attributes(data, ["b", "a"])
    assert chosen.vocabulary.names == ("b", "a") and part.shape == (4, 5, 1)
    np.testing.assert_array_equal(chosen.train.values, values[:, [1, 0]])
    assert chosen.train.fingerprint != part.fingerprint
    np.testing.assert_array_equal(chosen.unseen, [[1, 0]])  # b without a; both together are seen


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1), ("Yes", 1), ("TRUE", 1), (" 1.0 ", 1),
        ("0", 0), ("no", 0), ("false", 0), ("-1", 0), ("-1.0", 0),
        ("", UNKNOWN), ("?", UNKNOWN), ("NaN", UNKNOWN), ("N/A", UNKNOWN),
        ("0.5", 0.5), ("2", None), ("-0.5", None), ("cap", None), ("inf", None),
    ],
)  # fmt: skip
def test_values_as_people_write_them(text, value):
    assert read_value(text) == value


def test_names_that_differ_only_in_spelling_are_equal():
    assert (
        normalise_name("Top Hat")
        == normalise_name("top-hat")
        == normalise_name("TOP_HAT")
        != normalise_name("tophat")
    )


# ---- examples ----------------------------------------------------------------------------------


def pictures(n=7):
    """Image i has the values 10 i on its left and 10 i + 5 on its right."""
    images = np.zeros((n, 2, 4, 1), np.uint8) + np.uint8(10 * np.arange(n))[:, None, None, None]
    images[:, :, 2:] += 5
    values = np.array([[i % 2, UNKNOWN, i % 3 == 0] for i in range(n)], np.int8)
    return LabelledImages(images, values, "pictures")


def left_of(example):
    return round((example["pixel_values"][0, 0, 0] + 1) * 127.5)


def test_every_picture_is_shown_once_per_epoch():
    examples = LabelledExamples(pictures(), seed=3)
    orders = [[left_of(examples.example(7 * epoch + i)) for i in range(7)] for epoch in range(3)]
    assert all(sorted(order) == list(range(0, 70, 10)) for order in orders)
    assert orders[0] != orders[1] != orders[2]
    others = [left_of(LabelledExamples(pictures(), seed=4).example(i)) for i in range(7)]
    assert others != orders[0]


def test_an_example_depends_only_on_its_index():
    forwards, backwards = (LabelledExamples(pictures(), seed=3, mirror=True) for _ in range(2))
    expected = [forwards.example(n) for n in range(30)]
    for n in reversed(range(30)):
        example = backwards.example(n)
        for name, array in expected[n].items():
            np.testing.assert_array_equal(example[name], array)


def test_examples_match_their_specs():
    data = pictures()
    examples = LabelledExamples(data, seed=0)
    for n in range(7):
        example = examples.example(n)
        (spec,) = examples.specs
        assert spec == {name: (a.shape, a.dtype) for name, a in example.items()}
        row = left_of(example) // 10
        np.testing.assert_array_equal(
            example["pixel_values"], data.images[row].astype(np.float32) / 127.5 - 1
        )
        assert example["attributes_known"].tolist() == [1, 0, 1]
        assert example["attributes"].tolist() == [row % 2, 0, row % 3 == 0]


def test_half_of_the_examples_are_mirrored():
    plain_ones, mirrored = (LabelledExamples(pictures(), seed=3, mirror=m) for m in (False, True))
    assert plain_ones.fingerprint != mirrored.fingerprint
    flipped = 0
    for n in range(400):
        one, other = plain_ones.example(n), mirrored.example(n)
        same = np.array_equal(one["pixel_values"], other["pixel_values"])
        assert same or np.array_equal(one["pixel_values"][:, ::-1], other["pixel_values"])
        np.testing.assert_array_equal(one["attributes"], other["attributes"])
        flipped += not same
    assert 150 < flipped < 250


def test_as_many_rows_of_values_as_pictures():
    with pytest.raises(ValueError, match="3 pictures and 2 rows"):
        LabelledImages(np.zeros((3, 4, 4, 1), np.uint8), np.zeros((2, 1), np.int8), "x")
