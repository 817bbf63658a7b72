"""The report of a first contact with real weights, on the miniature."""

import hashlib
import json
import re

import pytest

from benchmarks.evaluation import real_check
from persongen_jax.miniature.__main__ import ASSETS

ADAPTER = ASSETS / "photomaker-v1.safetensors"
PEOPLE = "people:out_of_train?identities=2&pictures=3&first_picture=1000000&framing=portrait"


def test_files_are_named_with_their_hashes():
    args, more = real_check.parse_arguments([str(ADAPTER), "--", "--steps", "3"])
    what, digest = real_check.files(args)
    assert "PhotoMaker v1" in what and more == ["--steps", "3"]
    assert hashlib.sha256(ADAPTER.read_bytes()).hexdigest() in digest


def test_what_cannot_be_measured_is_said():
    args, _ = real_check.parse_arguments(["base"])
    assert list(real_check.table(args, [])) == ["Not measured: give an adapter's file."]
    args, _ = real_check.parse_arguments(["base", "file"])
    assert list(real_check.table(args, [])) == ["Not measured: give --people FOLDER."]
    with pytest.raises(SystemExit, match="nowhere: no such file or folder"):
        real_check.main(["nowhere"])


@pytest.mark.slow
def test_the_table_of_the_miniature(tmp_path):
    """Two files side by side, with their minutes and the thesis' own figures."""
    prompts = tmp_path / "prompts.json"
    prompts.write_text(json.dumps([{"general": "a {word} img"}, {"general": "a {word} img, red"}]))
    judges = ASSETS / "judges"
    command = [str(ASSETS / "sdxl"), str(ADAPTER), str(ADAPTER), "--people", PEOPLE]
    command += ["--clip", str(judges / "clip"), "--out", str(tmp_path / "report.md")]
    command += ["--", "--prompts", str(prompts), "--steps", "1", "--size", "64"]
    command += ["--images-each", "1", "--merge-step", "0"]
    shown, minutes, thesis = real_check.table(*real_check.parse_arguments(command))
    for i in range(2):
        found = re.search(rf"\| {i}-{re.escape(ADAPTER.stem)} \| 1 \| ([\d.]+) ", shown)
        assert found and 0 < float(found[1]) < 100, shown
        images = tmp_path / "report_table" / f"{i}-{ADAPTER.stem}" / "images" / "out_of_train"
        assert len(list(images.glob("*.png"))) == 4  # two people, two prompts
    assert "people: 2 on out-of-train." in shown
    assert re.fullmatch(r"\d+\.\d minutes\.", minutes) and "28.62 and 0.19" in thesis


@pytest.mark.slow
def test_the_report_on_the_miniature(tmp_path):
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(ADAPTER.read_bytes()[:1000])
    command = [str(ASSETS / "sdxl"), str(damaged), "--people", PEOPLE]
    assert real_check.main([*command, "--out", str(tmp_path / "report.md")]) == 1
    text = (tmp_path / "report.md").read_text()
    assert text.count("**Failed**: ") == 2  # its files, and its table
    found = re.search(r"largest difference ([\d.]+), mean ([\d.]+)", text)
    assert found and float(found[1]) < 2
    assert "GiB of main memory" in text
