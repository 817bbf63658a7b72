"""Faults of a folder or its table, each in one sentence."""

import numpy as np
import pytest
from PIL import Image

from data_pipeline.attributes import columns
from data_pipeline.attributes import folder as module
from data_pipeline.attributes.table import TableError, read_table
from tests.data_pipeline.attributes.folders import celeba, opened


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,a\n0,1\n1,0\n", r"faces/2.png has no row in labels.csv, nor has 1 other: add the"),
        ("image,a\n0,1\n", r"faces/1.png has no row in labels.csv, nor have 2 others: add"),
        ("image,a\n0,1\n1,0\n2,0\n3,1\n7,1\n", "csv line 6: '7' is not an image in .*faces; add"),
        ("image,a\n8,1\n9,0\n", "'8' is not an image in .*, nor are the pictures of 1 other"),
        ("image,a\n0,1\n1,0\n2,0\n3,1\n1,1\n", "line 6: 1.png has other values in"),
        ("image,a,b\n0,1,1\n1,0\n", "labels.csv line 3: 2 cells, but the header has 3; write"),
        ("image,a\n0,1,1\n1,0\n", "labels.csv line 2: 3 cells, but the header has 2"),
        ("image,a\n0,1\n1,0\n2,maybe\n3,1\n", "line 4: a is 'maybe', but yes or no in other rows"),
        ("image,a\n0,yes\n1,no\n2,f\n3,l\n", "line 5: a is 'l', but yes or no in other rows"),
        ("image,a\n0,1\n1,0\n2,0.5\n3,2\n", "line 4: a is 0.5; write 1 or 0, whole numbers"),
        ("image,a\n0,1\n1,-1\n2,0\n3,1\n", "column a holds -1 next to other.*leave unknown"),
        ("image,a\n0,-1\n1,4\n2,5\n3,6\n", "column a holds -1 next to other numbers"),
        ("image,a,b\n0,1,0\n1,0,0\n2,,\n3,1,no\n", "column b with the same value in every row"),
        ("image,a,b\n0,,x\n1,,x\n2,,x\n3,,x\n", "columns a, b with the same value.*so remove them"),
        ('image,a\n0,"x,y"\n1,z\n2,z\n3,z\n', "line 2: a is 'x,y'; \",\" separates attributes"),
        ("image,a=b\n0,1\n1,0\n", "column 'a=b' has .*so rename it"),
        ("image,a,A\n0,1,1\n1,0,0\n", "columns 2 and 3 are both named 'A'; rename or remove one"),
        (",image,a\n0,0,1\n", "column 1 has no name; write one in the header, or remove it"),
        ("image\n0\n1\n", "no column of attributes next to the images' names; add one"),
        ("image,split\n0,train\n1,test\n", "no column of attributes"),
        ("image,a\n", "no rows below the header"),
        ("\n\n", "labels.csv: empty; write a header"),
        ("image,a,split\n0,1,train\n1,0,tset\n2,1,0\n3,1,0\n", "line 3: split is 'tset'; write"),
        ("image,a,split\n0,1,0\n1,0,0\n2,1,0\n3,1,0\n", "all pictures are for training; write"),
        ("image,a,split\n0,1,1\n1,0,2\n2,1,1\n3,1,1\n", "all pictures are held out; write train"),
        ("3\na b\n0 1 -1\n1 -1 1\n", "line 1: says 3 rows, but 2 follow; correct it, or fetch"),
        ("2\na b\n0 1 -1\n1 -1\n", "labels.csv line 4: 2 cells, but the header has 3"),
        (f"image,a\n0,{'x' * 200_000}\n", "cannot be read as a table"),
    ],
)  # fmt: skip
def test_a_fault_of_the_table_in_one_sentence(write, text, message):
    with pytest.raises(TableError, match=message) as error:
        opened(write(text))
    assert "\n" not in str(error.value) and isinstance(error.value, ValueError)


def test_a_table_that_is_not_utf_8(write):
    with pytest.raises(TableError, match=r"labels.csv line 1: not UTF-8 text .*: save it as UTF-8"):
        opened(write("image,größe\n0,1\n1,0\n", encoding="latin-1"))


def test_too_many_different_words(write, monkeypatch):
    monkeypatch.setattr(columns, "MOST_MEMBERS", 3)
    with pytest.raises(
        TableError, match="column a holds 4 different values, more than the 3 of a c"
    ):
        opened(write("image,a\n0,w\n1,x\n2,y\n3,z\n"))


def test_a_folder_without_table_or_pictures(write, tmp_path):
    folder = write("image,a\n0,1\n1,0\n", n=0)
    with pytest.raises(TableError, match=r"faces: no pictures \(\.png.*\): put some there"):
        opened(folder)
    with pytest.raises(TableError, match="nothere.csv: no such table; check config.csv"):
        opened(folder, csv="nothere.csv")
    (folder / "labels.csv").unlink()
    with pytest.raises(
        TableError, match="faces: no table of attributes; put a .csv there whose fi"
    ):
        opened(folder)
    with pytest.raises(TableError, match="gone: no such folder"):
        opened(tmp_path / "gone")
    with pytest.raises(ValueError, match="channels=4"):
        opened(folder, channels=4)


def test_a_single_picture(write):
    with pytest.raises(TableError, match="column a with the same value"):
        opened(write("image,a\n0,1\n", n=1))
    with pytest.raises(TableError, match="a single image; at least two are needed"):
        module._check_split("faces", module._every_tenth(["0.png"]), None)


def test_a_name_that_two_pictures_have(write):
    folder = write("image,a\n0,1\n1,0\n", n=1)
    for inner in ("a", "b"):
        (folder / inner).mkdir()
        Image.new("RGB", (4, 4)).save(folder / inner / "1.png")
    with pytest.raises(TableError, match="line 3: '1' may be a/1.png and b/1.png; write which"):
        opened(folder)


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (b"no picture", r"2.png: cannot be decoded as an image \(.*\): remove it with the rows"),
        (np.zeros((2, 200, 3), np.uint8), "2.png: 200x2 pixels are too narrow.*: remove it with"),
    ],
)
def test_a_picture_that_cannot_be_used_is_found_when_opening(write, picture, message):
    folder = write("image,a\n0,1\n1,0\n2,1\n3,0\n")
    for name in ("2.png",):
        if isinstance(picture, bytes):
            (folder / name).write_bytes(picture)
        else:
            Image.fromarray(picture).save(folder / name)
    with pytest.raises(TableError, match=message):
        opened(folder)
    (folder / "3.png").write_bytes(b"")
    with pytest.raises(TableError, match="nor can 1 other: remove them with the rows"):
        opened(folder)


def test_a_list_of_splits_must_cover_every_image(tmp_path):
    folder = celeba(tmp_path, "list_eval_partition.txt")
    splits = folder / "list_eval_partition.txt"
    splits.write_text("000001.jpg 0\n000002.jpg 1\n")
    match = r"000003.jpg has no row in list_eval_partition.txt, nor has 1 other"
    with pytest.raises(TableError, match=match):
        opened(folder)
    splits.write_text("000001.jpg 0\n000002.jpg\n")
    with pytest.raises(TableError, match=r"partition.txt line 2: write a picture's name and 0, 1"):
        opened(folder)
    splits.write_text("000001.jpg 0\n000002.jpg 5\n")
    with pytest.raises(TableError, match=r"partition.txt line 2: partition is '5'; write train"):
        opened(folder)


def test_lines_are_counted_as_an_editor_does(write):
    folder = write('image,a\n\n0,"x\ny"\n\n1,z\n')
    table = read_table(folder / "labels.csv")
    assert [table.at(row).rpartition(" ")[2] for row in range(2)] == ["4", "6"]
