"""Folders of images in every layout: whose each is, from which prompt and seed, what is out."""

import json

import pytest

from persongen_jax.evaluation.folders.entries import Entry
from persongen_jax.evaluation.folders.layouts import read_images
from tests.evaluation.folders.drawn import draw

BEACH, SNOW = "a man on a beach", "a man in the snow"


def made(folder, *files):
    for file in files:
        draw(folder / file)
    return folder


def read(folder, **more):
    return read_images("mine", folder, **more)


def test_numbered_prompts_and_seeds_in_names(tmp_path):
    made(tmp_path, "ann/000_42.png", "ann/001_seed42.png", "bob/1_7.png", "bob/002_7.png")
    (tmp_path / "prompts.json").write_text(json.dumps([BEACH, SNOW]))
    found = read(tmp_path)
    assert found.layout == "prompts.json" and found.notes == []
    assert found.entries == [
        Entry("ann/000_42.png", "ann", BEACH, BEACH, "42"),
        Entry("ann/001_seed42.png", "ann", SNOW, SNOW, "42"),
        Entry("bob/1_7.png", "bob", SNOW, SNOW, "7"),
    ]
    assert list(found.excluded) == ["bob/002_7.png"]
    assert "prompts.json has no prompt '002'" in found.excluded["bob/002_7.png"]


def test_named_prompts(tmp_path):
    made(tmp_path, "ann/beach_1.png", "ann/snow.png")
    (tmp_path / "prompts.json").write_text(json.dumps({"beach": BEACH, "snow": SNOW}))
    found = read(tmp_path).entries
    assert [(entry.text, entry.seed) for entry in found] == [(BEACH, "1"), (SNOW, "")]


def test_a_line_for_each_image(tmp_path):
    made(tmp_path, "0.png", "bob/1.png", "bob/2.png")
    lines = [
        {"file_name": "0.png", "person": "ann", "prompt": f" {BEACH}\n", "seed": 0},
        {"file_name": "./bob/1.png", "text": SNOW, "steps": 50},
        {"file_name": "bob/3.png", "prompt": SNOW},
    ]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    found = read(tmp_path)
    assert [(e.person, e.text, e.seed) for e in found.entries] == [
        ("ann", BEACH, "0"),
        ("bob", SNOW, ""),
    ]
    assert found.notes == ["metadata.jsonl: not read: steps"]
    assert found.excluded["bob/2.png"] == "metadata.jsonl has no line for it"
    assert found.excluded["bob/3.png"].endswith("line 3 names it, and there is no such image")


def test_people_s_folders_alone(tmp_path):
    made(tmp_path, "ann/000_42.png", "ann/x/y.png", "bob/photo.png", "loose.png")
    found = read(tmp_path)
    assert [(e.person, e.prompt, e.seed) for e in found.entries] == [
        ("ann", "prompt 0", "42"),
        ("ann", "", ""),
        ("bob", "", ""),
    ]
    assert "no image's prompt is known: give their texts in prompts.json" in found.notes[0]
    assert found.excluded == {"loose.png": "lies next to people's folders: move it into one"}


def test_images_in_no_folder_are_the_only_reference_s(tmp_path):
    made(tmp_path, "0.png", "1.png")
    with pytest.raises(ValueError, match=r"whose are 0.png, 1.png\? put each person's images into"):
        read(tmp_path)
    assert {entry.person for entry in read(tmp_path, alone="ann").entries} == {"ann"}


def test_pictures_of_an_evaluated_run(tmp_path):
    made(tmp_path / "pictures", "a_000.png", "a_000_00.png")
    entry = {"set": "a", "label": f"ann / {BEACH}", "person": "ann", "prompt": BEACH, "seed": 42}
    entry |= {"reference": "a_000.png", "picture": "a_000_00.png"}
    index = tmp_path / "pictures" / "index.json"
    index.write_text(json.dumps([entry, {**entry, "picture": "gone.png"}]))
    found = read(tmp_path)
    assert found.entries == [Entry("a_000_00.png", "ann", BEACH, BEACH, "42")]
    assert found.references == {"ann": [str(tmp_path / "pictures" / "a_000.png")]}
    assert list(found.excluded) == ["gone.png"]
    for lacking in ("person", "reference"):
        index.write_text(json.dumps([{k: v for k, v in entry.items() if k != lacking}]))
        said = "entry 1 lacks one of person, picture, .*again with --pictures"
        with pytest.raises(ValueError, match=said):
            read(tmp_path)


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("metadata.jsonl", "[1]", 'line 1: {"file_name"'),
        ("metadata.jsonl", '{"prompt": "x"}', "line 1: no file_name: name the image's file"),
        (
            "metadata.jsonl",
            '{"file_name": "0.png"}',
            'line 1: whose image is it\\? Give it a "pers',
        ),
        ("metadata.jsonl", '{"file_name": ', "metadata.jsonl line 1: not JSON"),
        ("metadata.jsonl", '{"file_name": "gone.png"}', "none of its 2 images can be used"),
        ("metadata.jsonl", 2 * '{"file_name": "ann/0_1.png"}\n', "ann/0_1.png has 2 lines"),
        ("prompts.json", '"x"', "prompts.json: give a list of prompts"),
        ("prompts.json", '["x", {"general": "x"}]', "prompts.json: give a list of prompts"),
        ("prompts.json", '{"0": "x"}', "0.png: whose image is it"),
    ],
)
def test_a_faulty_file_is_named(file, text, said, tmp_path):
    made(tmp_path, "0.png", "ann/0_1.png")
    (tmp_path / file).write_text(text)
    with pytest.raises(ValueError, match=said):
        read(tmp_path)


def test_a_folder_that_is_none_and_one_that_is_empty(tmp_path):
    with pytest.raises(ValueError, match="none: no such folder"):
        read(tmp_path / "none")
    with pytest.raises(ValueError, match="no images in it"):
        read(tmp_path)
