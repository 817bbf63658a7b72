import json
import logging
import unicodedata
from collections import Counter

import pytest
from PIL import Image

from data_pipeline.records.manifest import (
    CLIPPED,
    DROPPED,
    ManifestError,
    read_manifest,
    write_manifest,
)
from data_pipeline.records.schema import Record


def entry(i=0, **changes):
    return {"identity": "anna", "image": f"{i}.png", "caption": "a woman img", **changes}


@pytest.fixture
def write(tmp_path):
    for i in range(4):
        Image.new("RGB", (40, 30), (60 * i, 0, 0)).save(tmp_path / f"{i}.png")

    def write(*entries):
        lines = [e if isinstance(e, str) else json.dumps(e) for e in entries]
        (tmp_path / "manifest.jsonl").write_text("\n".join(lines), "utf-8")
        return tmp_path

    return write


def test_reads_what_was_written(write):
    folder = write()
    records = [
        Record(
            str(folder / "0.png"),
            "anna",
            "a woman img",
            "a\u2028beach\x85",
            "in red",
            (1, 2, 30, 20),
        ),
        Record(str(folder / "1.png"), "anna", "eine Frau img, größer"),
        Record(
            str(folder / "2.png"),
            "anna",
            "a tall Woman img",
            class_word="woman",
            landmarks=tuple((i, i + 0.5) for i in range(5)),
            keypoints=tuple((-i, 2 * i) for i in range(12)),
            visibility=(True, False) * 6,
            original_size=(300, 400),
            crop=(10, 0, 400, 292.5),
        ),
    ]
    write_manifest(folder, records)
    assert read_manifest(folder) == records


def test_class_words_in_writing_without_blanks(write):
    folder = write()
    records = [
        Record(str(folder / f"{i}.png"), "anna", "一个女人 img 在海边", class_word="女人")
        for i in range(2)
    ]
    write_manifest(folder, records)
    assert read_manifest(folder) == records


def test_writing_refuses_pictures_elsewhere(write, tmp_path_factory):
    with pytest.raises(ManifestError, match="outside"):
        write_manifest(write() / "inner", [Record(str(write() / "0.png"), "anna", "a woman img")])
    folder = write()
    elsewhere = {"pose": str(folder.parent / "pose.png")}
    with pytest.raises(ManifestError, match=r"pose\.png: lies outside .*; move it inside"):
        record = Record(str(folder / "0.png"), "anna", "a woman img", images=elsewhere)
        write_manifest(folder, [record])
    assert (folder / "manifest.jsonl").read_text() == ""


def test_further_keys_and_pictures_are_written_and_read(write):
    """Even keys with the names of a record's fields."""
    folder = write()
    say = {
        "weight": 0.5,
        "tags": ["a", [1, {"b": None}]],
        "h\u00e5r": "r\u00f6t",
        "extra": {"x": 1},
    }
    (folder / "poses").mkdir()
    (folder / "poses" / "0.png").write_bytes((folder / "0.png").read_bytes())
    images = {"pose": str(folder / "poses" / "0.png"), "depth": str(folder / "1.png")}
    records = [
        Record(str(folder / "0.png"), "anna", "a woman img", images=images, extra=say),
        Record(str(folder / "1.png"), "anna", "a woman img", images={"pose": images["pose"]}),
        Record(str(folder / "2.png"), "anna", "a woman img", extra={"weight": 2}),
    ]
    write_manifest(folder, records)
    lines = [json.loads(line) for line in (folder / "manifest.jsonl").open(encoding="utf-8")]
    assert lines[0]["images"] == {"pose": "poses/0.png", "depth": "1.png"}
    assert lines[0].items() >= say.items() and "extra" not in lines[2]
    assert read_manifest(folder) == records
    write_manifest(folder, read_manifest(folder))
    assert read_manifest(folder) == records


def test_missing_further_pictures_are_among_the_missing_files(write):
    lines = [entry(0, images={"pose": "gone/0.png"}), entry(1, images={"pose": "1.png"}), entry(2)]
    with pytest.raises(ManifestError, match=r"1 lines cannot.*\n.*1 image files.*\n.*gone/0\.png"):
        read_manifest(write(*lines))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ('{"identity": ', "line 2: not JSON"),
        ("[1, 2]", "line 2: list instead of an object"),
        ({"identity": "anna", "image": "1.png"}, "line 2: missing or empty: caption"),
        ({"caption": "a woman img"}, "identity, image"),
        (entry(1, identity=7), "identity is 7"),
        (entry(1, caption="a woman"), 'appears 0 times in the prompt "a woman"'),
        (entry(1, caption="a woman img img"), "appears 2 times"),
        (entry(1, caption="img"), "opens the prompt"),
        (entry(1, face_box=[1, 2, 3]), "four numbers"),
        (entry(1, face_box="1 2 3 4"), "four numbers"),
        (entry(1, face_box=[1, 2, 3, None]), "four numbers"),
        (entry(1, face_box=[5, 5, 5, 9]), "is empty"),
        (entry(1, caption="a woman"), r"line 2: 1\.png: the trigger"),
        (entry(1, class_word="man in red"), "'man in red' does not precede the trigger"),
        (entry(1, class_word="man"), "'man' does not precede the trigger"),
        (entry(1, face_box=[0, 0, 10**400, 5]), "four numbers"),
        (entry(1, image="x" * 300), "line 2: image 'xxx.*: File name too long"),
        ('{"identity": "a", "identity": "b"}', "line 2: .*the key 'identity' is there twice"),
        (entry(1, landmarks=[[1, 2]] * 4), "landmarks is .*; 5 x 2 numbers"),
        (entry(1, keypoints=[[1, 2, 3]] * 12), "12 x 2 numbers"),
        (entry(1, keypoints=[[1, 2]] * 12, visibility=[1] * 12), "true or false"),
        (entry(1, visibility=[True] * 12), "without keypoints"),
        (entry(1, original_size=[30.5, 40]), "whole .height, width. are needed"),
        (entry(1, crop=[0, 0, 40, 30]), "crop without original_size"),
        (entry(1, crop=[0, 0, 41, 30], original_size=[30, 40]), r"original \(40x30 pixels\)"),
        ('{"identity":"a","image":"1.png","caption":"a b img","face_box":[0,0,NaN,4]}', "four"),
        (entry(1, face_box=[0.1, 0.1, 0.6, 0.8]), "less than 2 pixels; are these fractions"),
        (entry(image="../1.png"), "leads out of the folder"),
        (entry(image="/etc/passwd"), "leads out of the folder"),
        (entry(image="a/../../1.png"), "leads out of the folder"),
        (entry(1, images="1.png"), r'images is \'1.png\'; {"NAME": FILE} is needed'),
        (entry(1, images={"pose": 3}), r"line 2: images\.pose is 3; a file's name is needed"),
        (entry(1, images={"pose": ""}), r"images\.pose is ''; a file's name is needed"),
        (entry(1, images={"pose": "../1.png"}), r"images\.pose '\.\./1\.png' leads out of the"),
    ],
)
def test_bad_lines(write, bad, message):
    with pytest.raises(ManifestError, match=message) as caught:
        read_manifest(write(entry(0), bad, entry(2)))
    assert "manifest.jsonl: 1 lines cannot be used" in str(caught.value)


def test_all_missing_files_in_one_error(write):
    lines = [entry(i) for i in range(4)] + [entry(image=f"gone_{i}.png") for i in range(30)]
    with pytest.raises(ManifestError, match="30 image files are missing") as caught:
        read_manifest(write(*lines, "{"))
    assert all(f"gone_{i}.png" in str(caught.value) for i in range(30))
    assert "31 lines cannot be used" in str(caught.value) and "not JSON" in str(caught.value)


def test_boxes_at_and_over_the_edge_are_fixed_and_counted(write, caplog):
    boxes = ([-3, 5, 60, 45], [0, 0, 40, 30], [40, 5, 60, 9], [-9, -9, 0, 2])
    counts = Counter()
    with caplog.at_level(logging.WARNING):
        records = read_manifest(
            write(*(entry(i, face_box=boxes[i]) for i in range(4))), "img", counts
        )
    assert [r.face_box for r in records] == [(0, 5, 40, 30), (0, 0, 40, 30), None, None]
    assert counts[CLIPPED] == 1 and counts[DROPPED] == 2
    assert "boxes clipped at the image's edge: 1 (line 1)" in caplog.text
    assert "boxes outside the image dropped: 2 (line 3, line 4)" in caplog.text


def test_lonely_identities_are_dropped_with_a_count(write, caplog):
    folder = write(entry(0), entry(1), entry(2, identity="bert"), entry(3, identity="carl"))
    with caplog.at_level(logging.WARNING):
        records = read_manifest(folder)
    assert [r.identity for r in records] == ["anna", "anna"]
    assert "2 identities with fewer than 2 images are left out: bert, carl" in caplog.text


def test_one_file_twice_is_one_picture(write):
    with pytest.raises(ManifestError, match="no identity has two images"):
        read_manifest(write(entry(0), entry(0, caption="another woman img")))


def test_an_empty_or_missing_manifest(write, tmp_path):
    with pytest.raises(ManifestError, match="no such file"):
        read_manifest(tmp_path / "elsewhere")
    with pytest.raises(ManifestError, match="no identity has two images"):
        read_manifest(write(""))
    (tmp_path / "manifest.jsonl").write_bytes(b"\xff{}")
    with pytest.raises(ManifestError, match="not UTF-8"):
        read_manifest(tmp_path)


def test_unknown_keys_are_kept(write):
    """Unread keys are reported when training opens: examples/test_source.py."""
    records = read_manifest(write(entry(0, facebox=[1, 2, 3, 4]), entry(1)))
    assert [record.extra for record in records] == [{"facebox": [1, 2, 3, 4]}, None]


def test_without_references_a_single_picture_serves(write, caplog):
    folder = write(entry(0), entry(1, identity="bert"))
    with pytest.raises(ManifestError, match=r"no identity has two images \(2 lines\)"):
        read_manifest(folder)
    counts = Counter()
    caplog.clear()
    assert len(read_manifest(folder, counts=counts, least=1)) == 2
    assert not +counts and not caplog.text
    with pytest.raises(ManifestError, match="no identity has an image"):
        read_manifest(write(""), least=1)


def test_captions_need_no_trigger_word_where_nothing_reads_it(write):
    plain, twice = entry(0, caption="a woman"), entry(1, caption="img img, img", class_word="dog")
    folder = write(plain, twice)
    with pytest.raises(ManifestError, match="2 lines cannot be used"):
        read_manifest(folder)
    records = read_manifest(folder, marked=False)
    assert [record.caption for record in records] == ["a woman", "img img, img"]
    with pytest.raises(ManifestError, match="missing or empty: caption"):
        read_manifest(write(plain, entry(1, caption="")), marked=False)


def test_undecodable_picture_is_left_to_the_loader(write, caplog):
    folder = write(entry(0, face_box=[1, 2, 3, 4]), entry(1))
    (folder / "0.png").write_text("no picture")
    assert read_manifest(folder)[0].face_box is None
    assert "0.png" in caplog.text


def test_another_trigger_word(write):
    folder = write(*(entry(i, caption="a woman sks") for i in range(2)))
    assert len(read_manifest(folder, trigger_word="sks")) == 2
    with pytest.raises(ManifestError):
        read_manifest(folder)


# ---- Names as people write them ----------------------------------------------------------------


def test_files_by_the_spellings_of_other_systems(tmp_path):
    composed = unicodedata.normalize("NFC", "Zoë.png")
    decomposed = unicodedata.normalize("NFD", "Zoë.png")
    (tmp_path / "in").mkdir()
    for i, name in enumerate(("in/a.png", decomposed, "in/b.png", "c.png")):
        Image.new("RGB", (40, 30), (i, 0, 0)).save(tmp_path / name)
    names = ["in\\a.png", composed, str(tmp_path / "in" / "b.png"), f".\\{'c.png'}"]
    lines = [json.dumps(entry(image=name)) for name in names]
    (tmp_path / "manifest.jsonl").write_text("\n".join(lines), "utf-8")
    found = [record.image for record in read_manifest(tmp_path)]
    assert found == [str(tmp_path / n) for n in ("in/a.png", decomposed, "in/b.png", "c.png")]


def test_one_person_in_several_spellings(write, caplog):
    people = [unicodedata.normalize(form, "Zoë") for form in ("NFC", "NFD")]
    lines = [entry(i, identity=name) for i, name in enumerate([*people, "ann ", "Ann"])]
    records = read_manifest(write(*lines), least=1)
    assert [record.identity for record in records] == ["Zoë", "Zoë", "ann", "Ann"]
    assert "'ann' and 'Ann' look alike and count as 2 people" in caplog.text
