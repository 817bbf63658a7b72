"""A plain folder of images with its table: what is read of both."""

import numpy as np
import pytest
from PIL import Image

from data_pipeline.attributes import folder as module
from data_pipeline.attributes import folder_pictures
from data_pipeline.attributes.folder import (
    CELEBA_TERMS,
    Names,
)
from data_pipeline.attributes.folder_pictures import FolderPictures, find_images, square
from data_pipeline.attributes.labelled import LabelledExamples
from data_pipeline.attributes.table import TableError
from data_pipeline.attributes.vocabulary import UNKNOWN
from tests.data_pipeline.attributes.folders import SIZE, celeba, opened, shade


def by_shade(data):
    """The values of each image, and whether it is held out, by its index."""
    found = {}
    for held, part in ((False, data.train), (True, data.test)):
        for i in range(len(part)):
            found[int(part.images[i].flat[0]) // 20] = part.values[i].tolist(), held
    return {i: found[i] for i in sorted(found)}


def values_of(data):
    return [values for values, _ in by_shade(data).values()]


def test_a_folder_is_read(write, capsys):
    text = (
        "image,glasses,beard,split\n0.png,1,yes,train\n1.png,-1,,test\n2.png,1,No,val\n3.png,,true,"
    )
    data = opened(write(text + "0\n"))
    assert data.vocabulary.names == ("glasses", "beard") and not data.vocabulary.groups
    assert by_shade(data) == {
        0: ([1, 1], False),
        1: ([0, UNKNOWN], True),
        2: ([1, 0], True),
        3: ([UNKNOWN, 1], False),
    }
    assert data.train.values.dtype == np.int8 and data.train.shape == (SIZE, SIZE, 3)
    assert data.mirror and data.terms == ""
    assert capsys.readouterr().out == ""  # nothing was cropped or scaled


@pytest.mark.parametrize(
    "text",
    [
        "image;a b;c\n0.png;1;0\n1.png;0;1\n2.png;?;1\n",
        "\ufeffimage\ta b\tc\r\n0.png\t1\t0\r\n1.png\t0\t1\r\n\r\n2.png\tNaN\t1\r\n",
        '"picture","a b","c"\n"0",1,0\n"1.png",0,1\n"./2.png",,1\n',
        "a b,c,Filename\n1,0,0.png\n0,1,1\n, 1 ,2.png\n",
        "id,a b,c\n2,,yes\n1,no,yes\n0,yes,no\n0.png,1,0\n",  # given twice, but equal
    ],
)
def test_tables_of_other_forms(write, text):
    data = opened(write(text, n=3))
    assert data.vocabulary.names == ("a b", "c")
    assert values_of(data) == [[1, 0], [0, 1], [UNKNOWN, 1]]


def test_a_table_of_another_name_or_place(write, tmp_path):
    folder = write("image,a\n0,1\n1,0\n", n=2)
    (folder / "other.csv").write_text("image,b\n0,0\n1,1\n")
    (tmp_path / "third.csv").write_text("image,c\n0,0\n1,1\n")
    with pytest.raises(
        TableError, match=r"several tables \(labels.csv, other.csv\); name one with"
    ):
        opened(folder)
    assert opened(folder, csv="other.csv").vocabulary.names == ("b",)
    assert opened(folder, csv=str(tmp_path / "third.csv")).vocabulary.names == ("c",)


def test_words_and_numbers_are_classes(write):
    text = "file,label,hat,digit,age\n0,7,none,0,1.0\n1,0,cap,1,20.0\n2,10,Cap,1,\n3,?,,0,3\n"
    data = opened(write(text))
    groups = {
        "label": ("label=0", "label=7", "label=10"),
        "hat": ("hat=cap", "hat=none"),
        "age": ("age=1", "age=3", "age=20"),
    }
    assert data.vocabulary.groups == groups
    assert data.vocabulary.names == (*groups["label"], *groups["hat"], "digit", *groups["age"])
    assert not data.mirror
    no = UNKNOWN
    assert values_of(data) == [
        [0, 1, 0, 0, 1, 0, 1, 0, 0],
        [1, 0, 0, 1, 0, 1, 0, 0, 1],
        [0, 0, 1, 1, 0, 1, no, no, no],
        [no, no, no, no, no, 0, 0, 1, 0],
    ]
    with_letters = opened(write("file,sex\n0,f\n1,m\n2,f\n3,m\n"))
    assert with_letters.vocabulary.names == ("sex=f", "sex=m")


@pytest.mark.parametrize("partition", ["list_eval_partition.txt", "list_eval_partition.csv"])
def test_celeba_s_own_tables(tmp_path, capsys, partition):
    folder = celeba(tmp_path, partition)
    data = opened(folder, size=16)
    assert data.vocabulary.names == ("Smiling", "Wearing_Hat") and data.terms == CELEBA_TERMS
    assert by_shade(data) == {
        0: ([0, 1], False),
        1: ([1, 0], True),
        2: ([1, 1], True),
        3: ([0, 0], False),
    }
    assert capsys.readouterr().out == (
        f"{folder}: pictures of 178x218 are cut to their middle square and scaled to 16x16\n"
    )


def test_a_tenth_is_held_out_whatever_is_added(tmp_path):
    names = [f"{i:04d}.png" for i in range(2000)]
    held = module._every_tenth(names)
    assert 150 < held.sum() < 250
    more = sorted([*names, *(f"new-{i}.png" for i in range(500))])
    again = dict(zip(more, module._every_tenth(more), strict=True))
    assert [again[name] for name in names] == held.tolist()
    for n in range(2, 9):  # few images: at least one on either side
        held = module._every_tenth(names[:n])
        assert held.any() and not held.all()


def test_names_in_subfolders():
    names = Names(["1.png", "a/1.png", "a/2.jpg", "b/c/3.png", "b/x.y.png"])
    assert names.find("1.png") == [0] and names.find("a/1") == [1]
    assert names.find("2") == names.find("2.jpg") == names.find("a\\2.jpg") == [2]
    assert names.find("./b/c/3.png") == names.find("3.png") == [3]
    assert names.find("x.y") == [4]
    assert names.find("4.png") == names.find("c/3.png") == names.find("") == []


def test_hidden_files_and_cyclic_links_are_skipped(write):
    folder = write("", n=2)
    (folder / "inner").mkdir()
    (folder / "inner" / "loop").symlink_to(folder)
    (folder / ".thumbnails").mkdir()
    for name in ("inner/5.JPG", ".thumbnails/0.png", "._0.png"):
        Image.new("RGB", (4, 4)).save(folder / name)
    assert find_images(folder) == ["0.png", "1.png", "inner/5.JPG"]


def test_pictures_of_other_sizes_are_cut_and_scaled(write, capsys):
    folder = write("image,a\n0,1\n1,0\n2,1\n3,0\n", n=1)
    wide = np.zeros((20, 40, 3), np.uint8)
    wide[:, 10:30] = 200
    Image.fromarray(wide).save(folder / "1.png")
    Image.new("L", (4, 4), 90).save(folder / "2.bmp")
    Image.fromarray(wide).save(folder / "3.png")
    data = opened(folder)
    assert capsys.readouterr().out == (
        f"{folder}: pictures of 40x20 (and 1 other size) are cut to their middle square and scaled "
        "to 8x8; 1 smaller one is enlarged\n"
    )
    pictures = [image for part in (data.train, data.test) for image in part.images]
    assert sorted(int(p.min()) for p in pictures) == [0, 90, 200, 200]
    assert all(p.min() == p.max() and p.shape == (8, 8, 3) for p in pictures)


def test_grey_pictures_turned_and_transparent_ones(write):
    folder = write("image,a\n0,1\n1,0\n2,1\n", n=1)
    picture = np.zeros((SIZE, SIZE, 3), np.uint8)
    picture[: SIZE // 2] = 255  # white above
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    Image.fromarray(picture).save(folder / "1.jpg", exif=exif, quality=100)
    Image.new("RGBA", (SIZE, SIZE), (0, 0, 0, 0)).save(folder / "2.png")
    data = opened(folder, channels=1)
    assert data.train.shape == (SIZE, SIZE, 1) and not data.mirror
    pictures = [image for part in (data.train, data.test) for image in part.images]
    assert any(p.min() == 255 for p in pictures)  # the transparent one, on white
    assert any(p[0].max() < 10 and p[-1].min() > 245 for p in pictures)  # the upright one


def test_square_accepts_all_forms_of_images():
    grey = np.arange(48, dtype=np.uint8).reshape(6, 8)
    for image in (grey, grey[..., None]):
        np.testing.assert_array_equal(square(image, 6, 1)[..., 0], grey[:, 1:7])
        assert square(image, 6, 3).shape == (6, 6, 3)
    colour = np.stack([grey, grey, grey, np.full_like(grey, 255)], axis=-1)
    for image in (colour, colour[..., :3]):
        np.testing.assert_array_equal(square(image, 6, 1)[..., 0], grey[:, 1:7])
        assert square(image, 3, 3).dtype == np.uint8


def test_pictures_are_decoded_once_and_cannot_be_changed(write, monkeypatch):
    folder = write("", n=3)
    paths = [str(folder / f"{i}.png") for i in range(3)]
    reads = []
    monkeypatch.setattr(
        folder_pictures, "load_image", lambda path: reads.append(path) or shade(len(reads))
    )
    pictures = FolderPictures(paths, SIZE, 3)
    assert len(pictures) == 3 and not reads
    assert pictures[np.int64(1)] is pictures[1] is pictures[-2] and reads == [paths[1]]
    with pytest.raises(ValueError, match="read-only"):
        pictures[1][0] = 0
    assert pictures[:].shape == (3, SIZE, SIZE, 3) and pictures[2:2].shape == (0, SIZE, SIZE, 3)
    np.testing.assert_array_equal(pictures[[2, 1]], [pictures[2], pictures[1]])
    assert len(list(pictures)) == 3 == len(reads)
    monkeypatch.setattr(folder_pictures, "KEPT", 1)  # too many to keep, so they are decoded again
    assert len(FolderPictures(paths, SIZE, 3)[[0, 1, 0, 1]]) == 4 and len(reads) == 7


def test_training_reads_them(write):
    data = opened(write("image,a\n0,1\n1,0\n2,1\n3,0\n"))
    example = LabelledExamples(data.train, seed=0, mirror=True).example(0)
    assert example["pixel_values"].shape == (SIZE, SIZE, 3) and example["attributes"].shape == (1,)


def test_the_fingerprint_changes_with_the_content(write):
    text = "image,a\n0,1\n1,0\n2,1\n3,0\n"
    folder = write(text)
    first = opened(folder)
    marks = {first.train.fingerprint, first.test.fingerprint}
    assert len(marks) == 2 and opened(folder).train.fingerprint == first.train.fingerprint
    marks.add(opened(folder, size=4).train.fingerprint)
    marks.add(opened(folder, channels=1).train.fingerprint)
    marks.add(opened(write(text.replace("3,0", "3,1"))).train.fingerprint)
    file, sizes = write(text) / "3.png", set()
    for seed in (0, 1):  # two images of equal size in bytes
        pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
        Image.fromarray(pixels).save(file, compress_level=0)
        marks.add(opened(folder).train.fingerprint)
        sizes.add(file.stat().st_size)
    assert len(marks) == 7 and len(sizes) == 1
