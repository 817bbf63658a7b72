"""generate's options for a method's networks and for style."""

import pytest

from persongen_jax.generate.__main__ import parse_arguments
from persongen_jax.generate.method import style_arguments
from persongen_jax.generate.warnings import ineffective_options


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
