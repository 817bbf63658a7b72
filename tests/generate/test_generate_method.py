"""generate's options for a method and for style: settings, networks, InstantID's points."""

import warnings

import numpy as np
import pytest
from PIL import Image

from data_pipeline.examples.identity.face_points import FacePoints
from data_pipeline.examples.identity.faces import Faces
from data_pipeline.faces.face import Face
from persongen_jax.generate.__main__ import parse_arguments
from persongen_jax.generate.method import (
    add_face_points,
    check_files,
    chosen_options,
    parse_option,
    style_arguments,
)
from persongen_jax.generate.warnings import ineffective_options
from tests.generate.command import image_file, pixels

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
    items["a={[]: 1}"] = "{[]: 1}"  # Python cannot make this of it
    assert {item: parse_option(item) for item in items} == {k: ("a", v) for k, v in items.items()}
    with pytest.raises(ValueError, match="--method-option rank: write NAME=VALUE"):
        parse_option("rank")
    twice = ["--method-option", "a=1", "--method-option", "b=2", "--method-option", "a=3"]
    assert chosen_options(arguments(*twice[:4])) == {"a": 1, "b": 2}
    with pytest.raises(ValueError, match="--method-option a=3: a is given already"):
        chosen_options(arguments(*twice))


def arguments(*given):
    return parse_arguments(["--base", "x", "--prompt", "a", *given])


def test_every_prompt_gets_the_same_style(tmp_path):
    files = [image_file(tmp_path / f"{n}.png", (20 + n, 20)) for n in range(2)]
    style = ["--style", "a.safetensors", "--style-image", *files]
    given = style_arguments(arguments(*style), 2)
    assert list(given) == ["style_image"] and len(given["style_image"]) == 2
    for images in given["style_image"]:
        assert all(map(np.array_equal, images, map(pixels, files)))
    Image.fromarray(np.uint8([[0, 255]])).save(tmp_path / "right.png")
    style += ["--style-region", str(tmp_path / "right.png")]
    masks = style_arguments(arguments(*style), 2)["style_region"]
    assert np.array_equal(masks, [[[0, 1]]] * 2)
    assert style_arguments(arguments("--style", "a.safetensors"), 2) == {}


def test_files_that_are_not_there_are_said_before_a_base_is_loaded(tmp_path):
    run = tmp_path / "checkpoints" / "best"
    check_files(arguments("--method-weights", str(run), "--style", image_file(tmp_path / "a.png")))
    for option, path in (("--method-weights", tmp_path / "gone"), ("--style", tmp_path)):
        with pytest.raises(FileNotFoundError, match=f"{option} {path}: no such file"):
            check_files(arguments(option, str(path)))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--style-image", "1.png"], "--style-image 1.png: no adapter reads it; give --style"),
        (["--style", "a", "--style-image", *"12345"], "5 times --style-image: give one to 4"),
        (["--style", "a", "--style-region", "m.png"], "--style-region m.png: give --style-image"),
        (["--style", "a", "--style-image", "gone.png"], "gone.png"),
    ],
    ids=["no adapter", "five", "no image", "no file"],
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
