"""Options that a form of the command does not read, and a form that is given nothing."""

import json

import pytest

from persongen_jax import evaluate
from persongen_jax.metrics.measures import measure


def test_compare_reads_no_seed(tmp_path, capsys):
    files = []
    for name in "ab":
        row = {"step": 1, "set": "in_train", "method": name, "seed": 1}
        row["metrics"] = {"clip_t": measure([20, 22], ["a", "b"])}
        files.append(tmp_path / f"{name}.json")
        files[-1].write_text(json.dumps([row]))
    out = ["--out", str(tmp_path / "out"), "--step", "1"]
    evaluate.main(["--compare", *map(str, files), "--seed", "0", *out])
    said = capsys.readouterr()
    assert "| in-train | a | 1 | 21.00" in said.out
    assert said.err == (
        "warning: --seed: no effect with --compare, which reads existing measurements\n"
    )


def test_rate_measures_nothing(tmp_path, capsys):
    command = ["--rate", str(tmp_path / "a"), str(tmp_path / "b"), "--seed", "0", "--pairs", "0"]
    with pytest.raises(SystemExit):
        evaluate.main([*command, "--metrics", "clip_t", "--clip", ""])
    said = capsys.readouterr().err
    assert said == "warning: --clip, --metrics: no effect with --rate, which measures nothing\n"


@pytest.mark.parametrize(
    ("command", "remedy"),
    [
        (["--run", ""], "give the working directory of a training run"),
        (["--weights", "a=x", "--weights", ""], "give NAME=FILE"),
        (["--compare", "a", ""], "give runs or metrics files"),
        (["--images", ""], "give folders of images"),
        (["--rate", "", "b"], "give two folders of images"),
    ],
)
def test_an_empty_name_is_not_the_current_folder(command, remedy):
    with pytest.raises(SystemExit) as caught:
        evaluate.main(command)
    assert caught.value.code == f"error: {command[0]}: an empty name; {remedy}"
