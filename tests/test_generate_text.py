"""What generate reads as text, and what it says of options without effect."""

import pytest

from persongen_jax import generate
from tests.test_generate import run


@pytest.mark.parametrize("coding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_a_prompt_file_from_windows(coding, tmp_path):
    """A line ends at \\n, \\r\\n and \\r, and no mark is left."""
    text = "a castle\u2028höher\x85als\x0balles"
    (tmp_path / "prompts.txt").write_bytes(f"{text}\r\n\r\n  a man\r男人 \n".encode(coding))
    arguments = ["--base", "x", "--prompt-file", str(tmp_path / "prompts.txt")]
    found = generate.read_prompts(generate.parse_arguments(arguments))
    assert found == [text, "a man", "男人"]


def test_a_prompt_file_without_text_or_without_prompts(tmp_path):
    file = tmp_path / "prompts.txt"
    arguments = generate.parse_arguments(["--base", "x", "--prompt-file", str(file)])
    file.write_bytes("a castle\n".encode("utf-16-le"))
    with pytest.raises(ValueError, match=r"prompts\.txt: saved as UTF-16: save it as UTF-8"):
        generate.read_prompts(arguments)
    file.write_bytes(b" \r\n")
    with pytest.raises(ValueError, match=r"prompts\.txt: no prompt in it"):
        generate.read_prompts(arguments)


def test_options_without_effect_are_lines(tiny_base, tmp_path, capsys):
    options = ["--prompt", "a (man:1.5)", "--tile-size", "64", "--start-merge-step", "1"]
    options += ["--no-crop", "--detector", "cascade", "--image-encoder", "x"]
    run(tiny_base, tmp_path, *options)
    said = [s for s in capsys.readouterr().err.splitlines() if s.startswith("warning: ")]
    assert said == [
        "warning: --detector has no effect without --reference",
        "warning: --no-crop has no effect without --reference",
        "warning: --image-encoder has no effect without --method-weights",
        'warning: "(man:1.5)" in a prompt is read as plain text, not as a weight; weights and '
        "commands in prompts are not supported",
        "warning: tile_size=64 has no effect without tiling",
        "warning: start_merge_step=1 has no effect without references",
    ]
