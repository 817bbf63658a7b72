"""generate's options for a method and for style: settings, networks, InstantID's points."""

import warnings

import numpy as np
import pytest

from data_pipeline.examples.identity.face_points import FacePoints
from data_pipeline.examples.identity.faces import Faces
from data_pipeline.faces.face import Face
from persongen_jax.generate.__main__ import parse_arguments
from persongen_jax.generate.method import add_face_points, parse_option, style_arguments
from persongen_jax.generate.warnings import ineffective_options

FIELDS = (Faces(40, embedding=3), FacePoints())
FIRST, SECOND = (Face(np.zeros((9, 9, 3), np.uint8), np.full((5, 2), n)) for n in (1.0, 2.0))


def points_of(given):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        add_face_points(FIELDS, given)
    return given["face_points"]


def test_the_first_reference_says_where_the_face_is():
    assert points_of({"faces": [[[FIRST, SECOND]]] * 2}) == [FIRST, FIRST]
    assert points_of({"faces": [[[FIRST]]], "face_points": ["given"]}) == ["given"]


@pytest.mark.parametrize("faces", [None, [[[FIRST], [SECOND]]]], ids=["crops", "several people"])
def test_where_nobody_knows_it_is_said(faces):
    given = {"faces": faces}
    with pytest.warns(UserWarning, match="no face_points: give --input face_points=FILE"):
        add_face_points(FIELDS, given)
    assert "face_points" not in given
    add_face_points((), given)  # another method reads none


def test_options_are_numbers_or_words():
    items = {"a=sequence": "sequence", "a=3": 3, "a=0.5": 0.5, "a=True": True, "a=b=c": "b=c"}
    assert {item: parse_option(item) for item in items} == {k: ("a", v) for k, v in items.items()}
    with pytest.raises(ValueError, match="--method-option rank: write NAME=VALUE"):
        parse_option("rank")


def arguments(*given):
    return parse_arguments(["--base", "x", "--prompt", "a", *given])


def test_every_prompt_gets_the_same_style():
    args = arguments("--style", "a.safetensors", "--style-image", "1.png", "2.png")
    assert style_arguments(args, 2) == {"style_image": [["1.png", "2.png"]] * 2}
    assert style_arguments(arguments("--style", "a.safetensors"), 2) == {}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--style-image", "1.png"], "--style-image 1.png: no adapter reads it; give --style"),
        (["--style", "a", "--style-image", *"12345"], "5 times --style-image: give one to 4"),
    ],
    ids=["no adapter", "five"],
)
def test_images_that_nothing_reads_are_refused(given, said):
    with pytest.raises(ValueError, match=said):
        style_arguments(arguments(*given), 1)


def test_networks_without_weights_have_no_effect():
    args = arguments("--clip", "dir", "--method-controlnet", "net", "--style-encoder", "dir")
    assert ineffective_options(args) == [
        "--clip has no effect without --method-weights",
        "--method-controlnet has no effect without --method-weights",
        "--style-encoder has no effect without --style",
    ]
