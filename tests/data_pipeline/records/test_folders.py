"""Folders of images as people have them."""

import json
import os
import sys
import unicodedata

import numpy as np
import pytest
from PIL import Image

from data_pipeline.records.captions import propose_caption
from data_pipeline.records.folders import FolderError, read_folder

LEFT_OUT = "class images are left out: they show other people; config.class_data reads their folder"


@pytest.fixture
def put(tmp_path):
    """put("ann/1.png", ...) writes images of one pixel; returns the folder."""
    root = tmp_path / "photos"

    def write(*names):
        for i, name in enumerate(names):
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((1, 1, 3), i, np.uint8)).save(path, "PNG")
        return root

    return write


def who(folder):
    return [(image.path.rsplit("/", 1)[-1], image.identity) for image in folder.images]


def test_a_folder_for_each_person(put):
    root = put("ann/1.png", "ann/more/2.JPG", "bob/3.webp", ".hidden/4.png", "ann/.5.png", "6.png")
    (root / "notes.md").write_text("x")
    found = read_folder(root)
    assert who(found) == [("1.png", "ann"), ("2.JPG", "ann"), ("3.webp", "bob")]
    assert found.layout == "a folder for each person"
    assert found.notes == [
        "1 images lie next to people's folders and are left out: 6.png; move each into a folder"
    ]


def test_images_alone_are_one_person(put):
    root = put("1.png", "2.png")
    found = read_folder(root)
    assert who(found) == [("1.png", "photos"), ("2.png", "photos")]
    assert "one person" in found.layout and not found.notes


def test_kohyas_folders(put):
    root = put("10_ohwx woman/1.png", "10_ohwx woman/2.png", "5_bob/3.png")
    (root / "10_ohwx woman/1.txt").write_text("ohwx woman on a\nbeach")
    (root / "10_ohwx woman/2.caption").write_text("\ufeffin a city")
    found = read_folder(root)
    assert [image.identity for image in found.images] == ["ohwx woman", "ohwx woman", "bob"]
    assert [image.class_word for image in found.images] == ["woman", "woman", ""]
    assert [image.caption for image in found.images] == ["ohwx woman on a beach", "in a city", ""]
    assert found.notes == [
        "repeats (5, 10) are read by the methods of one person; others draw all people alike",
        "2 captions from text files",
    ]
    assert [image.repeats for image in found.images] == [10, 10, 5]


def test_kohyas_whole_tree(put):
    root = put("img/10_ohwx woman/1.png", "img/10_sks man/2.png", "reg/1_man/3.png")
    found = read_folder(root)
    assert [(i.identity, i.class_word) for i in found.images] == [
        ("ohwx woman", "woman"),
        ("sks man", "man"),
    ]
    assert f"1 {LEFT_OUT}" in found.notes


def test_folders_around_the_peoples_folders(put):
    for names in (("train/ann/1.png", "test/bob/2.png"), ("photos/ann/1.png", "photos/bob/2.png")):
        found = read_folder(put(*names))
        assert {identity for _, identity in who(found)} >= {"ann", "bob"}
        (put() / names[0]).unlink(), (put() / names[1]).unlink()


def test_an_empty_caption_and_two_captions_are_said(put):
    root = put("ann/1.png", "ann/2.png")
    (root / "ann/1.txt").write_text(" \n")
    (root / "ann/2.txt").write_text("two")
    (root / "ann/2.caption").write_text("also two")
    found = read_folder(root)
    assert [image.caption for image in found.images] == ["", "two"]
    assert found.notes == [
        "2.caption is not read beside 2.txt",
        "1 captions from text files",
        "1 text files are empty, so captions are proposed: 1.txt",
    ]


def test_masks_belong_to_images(put):
    names = ["ann/1.png", "ann/2.jpg", "ann/white_mask.png", "ann/masks/1.png"]
    root = put(*names, "ann/2-masklabel.png", "bob/3.png", "bob/3_mask.webp")
    found = read_folder(root)
    masks = {image.path: image.mask for image in found.images}
    assert masks == {
        str(root / "ann/1.png"): str(root / "ann/masks/1.png"),
        str(root / "ann/2.jpg"): str(root / "ann/2-masklabel.png"),
        str(root / "ann/white_mask.png"): "",  # no picture is called white
        str(root / "bob/3.png"): str(root / "bob/3_mask.webp"),
    }
    assert found.notes == ["3 masks, which config.loss_mask='mask' reads"]


def test_captions_as_tools_name_them(put):
    root = put("ann/1.JPG", "ann/2.png", "ann/é.png".replace("é", "e\u0301"))
    (root / "ann/1.TXT").write_text("one")
    (root / "ann/2.png.txt").write_text("two")
    (root / "ann/\u00e9.txt").write_text("three")
    (root / "ann/orphan.txt").write_text("four")
    found = read_folder(root)
    assert sorted(image.caption for image in found.images) == ["one", "three", "two"]
    assert "1 text files are no image's caption: orphan.txt" in found.notes


def test_numbered_people_are_not_kohyas(put):
    for names in (("001_01/1.png", "002_01/2.png"), ("2023_ann/1.png", "2024_ann/2.png")):
        root = put(*names)
    found = read_folder(root)
    assert len({image.identity for image in found.images}) == 4
    assert who(read_folder(put("1_01/7.png", "2_01/8.png")))[:2] != []


def test_loose_photographs_beside_class_images(put):
    found = read_folder(put("me.png", "class_images/2.png"))
    assert who(found) == [("me.png", "photos")]
    assert found.notes == [f"1 {LEFT_OUT}"]


def test_diffusers_instance_and_class_images(put):
    found = read_folder(put("instance_images/1.png", "class_images/2.png", "class_images/3.png"))
    assert who(found) == [("1.png", "photos")]
    assert found.notes == [f"2 {LEFT_OUT}"]


def test_people_who_are_called_like_a_kind_of_folder(put):
    assert who(read_folder(put("class/1.png"))) == [("1.png", "class")]


@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_hugging_faces_metadata(put, form):
    root = put("train/a.png", "train/b.png", "train/c.png")
    rows = [
        {"file_name": "a.png", "text": "a man in a suit", "person": "Bob", "licence": "x"},
        {"file_name": "b.png", "text": "", "person": "Ann", "licence": ""},
    ]
    if form == "jsonl":
        text = "".join(json.dumps(row) + "\n" for row in rows)
    else:
        text = "\n".join([",".join(rows[0]), *(",".join(row.values()) for row in rows)])
    (root / "train" / f"metadata.{form}").write_text(text)
    found = read_folder(root)
    assert who(found) == [("a.png", "Bob"), ("b.png", "Ann")]
    assert [image.caption for image in found.images] == ["a man in a suit", ""]
    assert found.notes == [
        f"train/metadata.{form}: 'licence' is not read",
        "1 images without a line are left out: train/c.png",
    ]


def test_metadata_as_programs_write_it(put):
    root = put("data/train/a.png", "data/test/b.png")
    (root / "data/train/metadata.csv").write_bytes(b"file_name;person\r\na.png;Bob\r\n")
    (root / "data/train/metadata.jsonl").write_text('{"file_name": "a.png", "person": "Bob"}\n')
    (root / "data/test/metadata.csv").write_bytes(b"file_name;text\rb.png;a man\r")
    found = read_folder(root)
    assert who(found) == [("b.png", "photos"), ("a.png", "Bob")]
    assert found.notes == ["data/train/metadata.csv is not read beside metadata.jsonl"]
    (root / "data/test/metadata.csv").write_text("file_name\n../../x.png\n")
    with pytest.raises(FolderError, match="line 2: .*leads out of the folder"):
        read_folder(root)


@pytest.mark.skipif(os.name != "posix" or sys.platform == "darwin", reason="names are bytes there")
def test_names_that_are_not_utf_8(put):
    root = put("ann/1.png")
    (root / "ann" / os.fsdecode(b"\xeb.png")).write_bytes((root / "ann/1.png").read_bytes())
    found = read_folder(root)
    assert who(found) == [("1.png", "ann")]
    assert "1 images with names that are not UTF-8 are left out" in found.notes[0]


def test_without_a_person_the_folder_says_whose(put):
    root = put("ann/a.png", "b.png")
    lines = [{"file_name": "ann/a.png"}, {"image": "b.png"}]
    (root / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert who(read_folder(root)) == [("a.png", "ann"), ("b.png", "photos")]


def test_all_faults_of_the_metadata_with_their_lines(put):
    root = put("a.png")
    (root / "metadata.jsonl").write_text('{"text": "x"}\n[1]\n{"file_name": "gone.png"}\n')
    with pytest.raises(FolderError) as fault:
        read_folder(root)
    said = str(fault.value)
    assert "3 lines cannot be used" in said and "line 1: no file_name" in said
    assert "line 2: list" in said and "line 3" in said and "gone.png: no such file" in said


def test_spellings_of_a_name(put):
    composed = unicodedata.normalize("NFC", "Zoë")
    decomposed = unicodedata.normalize("NFD", "Zoë")
    root = put(f"{composed}/1.png", f"{decomposed}/2.png", "ann_b/3.png", "Ann B/4.png")
    found = read_folder(root)
    assert {identity for _, identity in who(found)} == {composed, "ann_b", "Ann B"}
    assert "2 spellings of 'Zoë' count as one person" in found.notes
    assert any("'Ann B' and 'ann_b' look alike and count as 2" in note for note in found.notes)


def test_folders_that_are_none(tmp_path):
    with pytest.raises(FolderError, match="no such folder"):
        read_folder(tmp_path / "gone")
    with pytest.raises(FolderError, match="no images in it"):
        read_folder(tmp_path)


@pytest.mark.parametrize(
    ("text", "word", "share", "caption", "is_"),
    [
        ("", "", None, "a photo of a person img", "person"),
        ("", "woman", 0.6, "a close-up photo of a woman img", "woman"),
        ("", "actor", 0.05, "a full-body photo of an actor img", "actor"),
        ("ohwx woman on a beach", "woman", 0.3, "ohwx woman img on a beach", "woman"),
        ("A Man, a woman", "", 0.3, "A Man img, a woman", "Man"),
        ("on a beach", "man", 0.3, "a photo of a man img, on a beach", "man"),
        ("a girl img runs", "", 0.3, "a girl img runs", ""),
        ("a girl img runs", "girl", 0.3, "a girl img runs", "girl"),
        ("photo of sks img", "woman", 0.3, "photo of sks img", ""),
        ("IMG 2034", "man", 0.3, "a photo of a man img, 2034", "man"),
        (
            "a man-made lake, a woman's hat, a girl",
            "",
            0.3,
            "a man-made lake, a woman's hat, a girl img",
            "girl",
        ),
        ("a mannequin", "man", 0.3, "a photo of a man img, a mannequin", "man"),
    ],
)
def test_proposed_captions(text, word, share, caption, is_):
    assert propose_caption(text, word, share) == (caption, is_)
