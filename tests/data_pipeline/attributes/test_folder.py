"""A plain folder of images with its table: its contents, and messages about its faults."""

import numpy as np
import pytest
from PIL import Image

from data_pipeline.attributes import columns, folder_pictures
from data_pipeline.attributes import folder as module
from data_pipeline.attributes.folder import (
    CELEBA_TERMS,
    Names,
    open_folder,
)
from data_pipeline.attributes.folder_pictures import FolderPictures, find_images, square
from data_pipeline.attributes.labelled import LabelledExamples
from data_pipeline.attributes.table import TableError, read_table
from data_pipeline.attributes.vocabulary import UNKNOWN

SIZE = 8


def shade(i):
    return np.full((SIZE, SIZE, 3), 20 * i, np.uint8)


@pytest.fixture
def write(tmp_path):
    """Writes a folder "faces" of images 0.png, 1.png, ... of shades 0, 20, ... and its table."""
    folder = tmp_path / "faces"

    def write(text, n=4, name="labels.csv", encoding="utf-8"):
        folder.mkdir(exist_ok=True)
        for i in range(n):
            Image.fromarray(shade(i)).save(folder / f"{i}.png")
        (folder / name).write_bytes(text.encode(encoding))
        return folder

    return write


def opened(folder, **options):
    return open_folder(folder, **{"size": SIZE, **options})


def by_shade(data):
    """The values of each image, and whether it is held out, by its index."""
    found = {}
    for held, part in ((False, data.train), (True, data.test)):
        for i in range(len(part)):
            found[int(part.images[i].flat[0]) // 20] = part.values[i].tolist(), held
    return {i: found[i] for i in sorted(found)}


def values_of(data):
    return [values for values, _ in by_shade(data).values()]


# ---- tables that are read ------------------------------------------------------------------------


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


CELEBA = (
    "4\nSmiling Wearing_Hat \n"
    "000001.jpg -1  1\n000002.jpg  1 -1\n000003.jpg  1  1\n000004.jpg -1 -1\n"
)


def celeba(tmp_path, partition):
    folder = tmp_path / "celeba"
    (folder / "img_align_celeba").mkdir(parents=True)
    for i in range(4):
        Image.new("RGB", (178, 218), (20 * i,) * 3).save(
            folder / "img_align_celeba" / f"00000{i + 1}.jpg", quality=100
        )
    (folder / "list_attr_celeba.txt").write_text(CELEBA)
    (folder / partition).write_text(
        "".join(f"00000{i + 1}.jpg {i}\n" for i in (0, 1, 2)) + "000004.jpg 0\n000009.jpg 2\n"
        if partition.endswith("txt")
        else "image_id,partition\n000001.jpg,0\n000002.jpg,1\n000003.jpg,2\n000004.jpg,0\n"
    )
    return folder


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


# ---- pictures ----------------------------------------------------------------------------------


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


# ---- faults ------------------------------------------------------------------------------------


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
