"""Errors of the command: one line each that names the thing."""

import shutil

import pytest
from PIL import Image

from tests.generate.command import image_file, run


def fails(capsys, base, out, *arguments):
    """The one line that the command ends with; nothing was generated."""
    with pytest.raises(SystemExit) as caught:
        run(base, out, *arguments)
    message = caught.value.code
    assert isinstance(message, str) and message.startswith("error: ")
    assert "\n" not in message
    assert not out.exists()
    assert "step/s" not in capsys.readouterr().err  # no progress bar in front of the message
    return message


PROMPT = ["--prompt", "a man"]


PLAIN_ERRORS = {
    "no prompt": ([], "--prompt-file"),
    "prompt file": (["--prompt-file", "/nowhere/prompts.txt"], "/nowhere/prompts.txt"),
    "reference alone": ([*PROMPT, "--reference", "x.png"], "--method-weights"),
    "name alone": ([*PROMPT, "--method", "photomaker"], "--method photomaker"),
    "scheduler": ([*PROMPT, "--scheduler", "heun"], "'heun'"),
    "height": ([*PROMPT, "--height", "60"], "height=60"),
    "steps": ([*PROMPT, "--steps", "0"], "num_inference_steps=0"),
    "images": ([*PROMPT, "--images-per-prompt", "0"], "num_images_per_prompt=0"),
    "lora": ([*PROMPT, "--lora", "/nowhere/x.safetensors@0.5"], "/nowhere/x.safetensors:"),
    "embedding": ([*PROMPT, "--embedding", "/nowhere/x.pt:me"], "/nowhere/x.pt: no such file"),
    "scale": ([*PROMPT, "--scale", "identity"], "NAME=NUMBER"),
    "scales alone": ([*PROMPT, "--scale", "identity=1"], "references"),
    "lora weight": ([*PROMPT, "--lora", "x.safetensors@much"], "'much' is not a number"),
}


@pytest.mark.parametrize("case", PLAIN_ERRORS)
def test_errors_are_one_line_and_name_the_thing(case, small_base, tmp_path, capsys):
    arguments, named = PLAIN_ERRORS[case]
    assert named in fails(capsys, small_base, tmp_path / "out", *arguments)


@pytest.mark.parametrize(
    "gone", ["", "unet/diffusion_pytorch_model.safetensors", "vae", "tokenizer"]
)
def test_a_part_of_the_base_that_is_not_there(gone, small_base, tmp_path, capsys):
    base = tmp_path / "base"
    if gone:
        shutil.copytree(small_base, base)
        target = base / gone
        shutil.rmtree(target) if target.is_dir() else target.unlink()
    assert str(base / gone.split("/")[0]) in fails(capsys, base, tmp_path / "out", *PROMPT)


def test_a_prompt_file_that_is_no_text(small_base, tmp_path, capsys):
    (tmp_path / "prompts.txt").write_bytes(b"caf\xe9")
    message = fails(capsys, small_base, tmp_path / "out", "--prompt-file", tmp_path / "prompts.txt")
    assert "prompts.txt" in message and "UTF-8" in message


REFERENCE_ERRORS = {
    "no trigger": ("a man", "face.png", 1, ["--no-crop"], '"img" appears 0 times'),
    "two triggers": ("a man img img", "face.png", 1, ["--no-crop"], '"img" appears 2 times'),
    "leading trigger": ("img of a man", "face.png", 1, ["--no-crop"], 'opens the prompt "img of'),
    "late trigger": ("a " * 80 + "man img", "face.png", 1, ["--no-crop"], "too late"),
    "five": ("a man img", "face.png", 5, ["--no-crop"], "5 references"),
    "no image": ("a man img", "notes.txt", 1, ["--no-crop"], "notes.txt"),
    "no file": ("a man img", "gone.png", 1, [], "gone.png"),
    "no face": ("a man img", "face.png", 1, ["--detector", "yunet"], "--no-crop"),
    "no detector": ("a man img", "face.png", 1, ["--detector", "yolo"], "'yolo'"),
    "no such scale": ("a man img", "face.png", 1, ["--no-crop", "--scale", "x=1"], "'x'"),
    "method alone": ("a man img", "face.png", 0, [], "give --reference"),
    "other method": (
        "a man img",
        "face.png",
        1,
        ["--no-crop", "--method", "photomaker_bg"],
        "not of 'photomaker_bg'",
    ),
}


@pytest.mark.parametrize("case", REFERENCE_ERRORS)
def test_errors_about_references(case, small_base, method_weights, tmp_path, capsys):
    prompt, name, count, more, named = REFERENCE_ERRORS[case]
    if case == "no face":
        pytest.importorskip("skimage")
    Image.new("RGB", (64, 64), "gray").save(tmp_path / "face.png")
    (tmp_path / "notes.txt").write_text("no picture")
    references = ["--reference", tmp_path / name] * count
    message = fails(
        capsys,
        small_base,
        tmp_path / "out",
        "--method-weights",
        method_weights,
        "--prompt",
        prompt,
        *references,
        *more,
    )
    assert named in message


def test_method_weights_that_are_not_there(small_base, tmp_path, capsys):
    reference = image_file(tmp_path / "face.png")
    arguments = ["--method-weights", tmp_path / "run", "--reference", reference, "--no-crop"]
    message = fails(capsys, small_base, tmp_path / "out", *PROMPT, *arguments)
    assert str(tmp_path / "run") in message
