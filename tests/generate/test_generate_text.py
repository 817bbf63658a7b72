"""Text that generate reads, the form of --scale, and warnings about options without effect."""

import pytest

from data_pipeline.examples.conditions import References
from data_pipeline.examples.identity.bodies import Bodies
from data_pipeline.examples.identity.faces import Faces
from persongen_jax.cli import plain_warnings
from persongen_jax.generate import __main__ as generate
from persongen_jax.generate.base import parse_scales
from persongen_jax.generate.warnings import ineffective_for, ineffective_options
from persongen_jax.pipeline.checks import warn_of_call


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


def test_options_without_effect_are_lines(capsys):
    def told(*options):
        return ineffective_options(
            generate.parse_arguments(["--base", "x", "--prompt", "a", *options])
        )

    assert told() == told("--reference", "a.png", "--no-crop", "--tile-size", "64") == []
    assert told("--no-crop", "--detector", "yunet", "--image-encoder", "x") == [
        "--detector has no effect without --reference",
        "--no-crop has no effect without --reference",
        "--image-encoder has no effect without --method-weights",
    ]
    assert told("--reference", "a.png", "--no-crop", "--detector", "yunet") == [
        "--detector yunet has no effect: --no-crop detects no face"
    ]
    net = generate.parse_arguments(
        ["--base", "x", "--prompt", "a", "--reference", "a.png", "--pose-net", "keypoints:x"]
    )
    faces, bodies = (References(16),), (References(16), Bodies(16))
    assert ineffective_options(net) == ineffective_for(net, bodies) == []
    (line,) = ineffective_for(net, faces)
    assert line.startswith("--pose-net has no effect: the loaded method reads no bodies")
    # A box is enough where squares are cut; by landmarks a detector finds them at the box.
    boxed = generate.parse_arguments(
        ["--base", "x", "--prompt", "a", "--reference", "a.png", "--face-box", "0,0,9,9"]
        + ["--detector", "yunet"]
    )
    (line,) = ineffective_for(boxed, faces)
    assert line.startswith("--detector yunet has no effect: --face-box says where")
    assert ineffective_options(boxed) == ineffective_for(boxed, (Faces(16),)) == []
    # A warning of a pipeline call is a line, and every command prints it once.
    for _ in range(2):
        with plain_warnings():
            for _ in range(2):
                warn_of_call("seed=3 has no effect")
    assert capsys.readouterr().err == "warning: seed=3 has no effect\n" * 2


def test_the_command_lines_form():
    items = ["identity=0@0-0.3", "lora=0.5", " identity = 0.8@0.3-1"]
    found = parse_scales(items)
    assert found == {"identity": [(0.0, 0.3, 0.0), (0.3, 1.0, 0.8)], "lora": 0.5}
    for bad in (["x"], ["x=1@0.3"], ["x=a"], ["x=1", "x=2"], ["x=1@0-0.5", "x=1"]):
        with pytest.raises(ValueError, match="--scale x"):
            parse_scales(bad)
