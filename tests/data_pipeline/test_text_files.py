"""Text as users save it: byte order marks, encodings, line ends, broken JSON."""

import codecs
import json

import pytest

from data_pipeline.attributes.table import TableError, read_table
from data_pipeline.records.manifest import ManifestError, read_manifest
from data_pipeline.text_files import (
    TextError,
    parse_json_lines,
    read_json,
    read_lines,
    read_text,
    whole_lines,
)

TEXT = "a man img, größer\nein 男人 img\n"
MARKED = {
    "utf-8": codecs.BOM_UTF8,
    "utf-16-le": codecs.BOM_UTF16_LE,
    "utf-16-be": codecs.BOM_UTF16_BE,
    "utf-32-le": codecs.BOM_UTF32_LE,
    "utf-32-be": codecs.BOM_UTF32_BE,
}


@pytest.fixture
def file(tmp_path):
    return tmp_path / "prompts.txt"


@pytest.mark.parametrize("coding", MARKED)
def test_byte_order_marks_are_removed_and_set_the_encoding(coding, file):
    file.write_bytes(MARKED[coding] + TEXT.encode(coding))
    assert read_text(file) == TEXT
    assert read_lines(file) == ["a man img, größer", "ein 男人 img"]


def test_plain_text_and_no_text(file):
    file.write_text(TEXT, "utf-8")
    assert read_text(file) == TEXT
    file.write_bytes(b"")
    assert read_text(file) == "" and read_lines(file) == []
    file.write_bytes(codecs.BOM_UTF8)
    assert read_lines(file) == []


def test_marks_where_files_were_put_together(file):
    file.write_bytes(codecs.BOM_UTF8 * 2 + b"one\r\n" + codecs.BOM_UTF8 + b"two")
    assert read_lines(file) == ["one", "two"]
    file.write_text("one \ufeff two", "utf-8")  # inside a line it is the user's text
    assert read_lines(file) == ["one \ufeff two"]


@pytest.mark.parametrize("coding", ["utf-16-le", "utf-16-be", "utf-32-le"])
@pytest.mark.parametrize("text", [TEXT, "a", "男人在海边\n穿红色外套\n"])
def test_utf16_without_its_mark_is_refused(coding, text, file):
    file.write_bytes(text.encode(coding))
    with pytest.raises(TextError, match=r"prompts\.txt.*save it as UTF-8|NUL character"):
        read_text(file)


def test_utf16_is_called_by_its_name(file):
    for text in (TEXT, "a castle", "höher"):
        file.write_bytes(text.encode("utf-16-le"))
        with pytest.raises(TextError, match=r"prompts\.txt: saved as UTF-16: save it as UTF-8"):
            read_text(file)
    file.write_bytes(TEXT.encode("utf-32-le"))
    with pytest.raises(TextError, match=r"prompts\.txt: saved as UTF-32: save it as UTF-8"):
        read_text(file)
    for raw in (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0", b"\xff\0" + b"abcdefgh" * 9):
        file.write_bytes(raw)
        with pytest.raises(TextError, match=r"prompts\.txt: holds NUL bytes: no text"):
            read_text(file)


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"one\r\ntwo\rgr\xfc\xdfe", r"line 3: not UTF-8 text \(bytes fc\)"),
        ("a man\n’s".encode("cp1252"), r"line 2: not UTF-8 text \(bytes 92\)"),
        (b"a\n\xed\xa0\xbd", "line 2: not UTF-8 text"),  # half of a pair
        (codecs.BOM_UTF16_LE + "a\n".encode("utf-16-le") + b"\x00\xd8", "line 2: not UTF-16 text"),
        (codecs.BOM_UTF16_LE + b"a\x00b", "line 1: not UTF-16 text"),  # cut short
        (b"one\ntw\x00o", "line 2: a NUL character"),
    ],
)
def test_bytes_that_are_not_text_are_reported_with_their_line(raw, said, file):
    file.write_bytes(raw)
    with pytest.raises(TextError, match=said):
        read_text(file)


def test_lines_end_at_line_ends_only(file):
    strange = "a\u2028b\u2029c\x85d\x0be\x0cf\x1cg"
    file.write_bytes(f"{strange}\r\ntwo\rthree\n\n five".encode())
    assert read_lines(file) == [strange, "two", "three", "", " five"]


def test_a_log_cut_short(file):
    file.write_text("one\ntw")
    assert whole_lines(file) == ["one"]
    file.write_text("one\n")
    assert whole_lines(file) == ["one"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"a": 1,\n "b"}', "line 2: not JSON"),
        ("", "line 1: not JSON"),
        ("[" * 100_000, "nested too deep"),
        ("1" * 5000, "not JSON that can be read"),
        ('"a man img \\ud83d"', r"half of a character, \\ud83d"),
    ],
)
def test_broken_json(text, said, file):
    file.write_text(text, "utf-8")
    with pytest.raises(TextError, match=said):
        read_json(file)


def test_json_with_a_mark_and_lines_of_it(file):
    file.write_bytes(codecs.BOM_UTF8 + '{"a": "\\ud83d\\ude00 ü"}'.encode())
    assert read_json(file) == {"a": "😀 ü"}
    with pytest.raises(TextError, match=r"prompts\.txt line 3: not JSON"):
        list(parse_json_lines('{"a": 1}\r\n\r\nb\r\n', file))


def entry(i, **changes):
    return {"identity": "anna", "image": f"{i}.png", "caption": "a woman img", **changes}


@pytest.fixture
def manifest(tmp_path):
    from PIL import Image

    for i in range(2):
        Image.new("RGB", (40, 30), (90 * i, 0, 0)).save(tmp_path / f"{i}.png")
    rows = [entry(0, caption="a woman img on a\u2028 beach"), entry(1)]
    text = "\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    return tmp_path, text


@pytest.mark.parametrize("coding", MARKED)
def test_a_manifest_from_windows(manifest, coding):
    folder, text = manifest
    (folder / "manifest.jsonl").write_bytes(MARKED[coding] + text.encode(coding))
    records = read_manifest(folder)
    assert [record.caption for record in records] == ["a woman img on a\u2028 beach", "a woman img"]


def test_a_manifest_that_is_no_text(manifest):
    folder, text = manifest
    (folder / "manifest.jsonl").write_bytes(text.encode("utf-16-le"))
    with pytest.raises(ManifestError, match=r"manifest\.jsonl: saved as UTF-16: save it as UTF-8"):
        read_manifest(folder)
    (folder / "manifest.jsonl").write_bytes(text.encode() + b"\r\n\xff")
    with pytest.raises(ManifestError, match=r"manifest\.jsonl line 3: not UTF-8 text"):
        read_manifest(folder)


def test_a_table_from_a_spreadsheet(tmp_path):
    path = tmp_path / "attributes.csv"
    path.write_bytes("image;größe\r\na.png;1\r\n".encode("utf-16"))  # Excel's "Unicode text"
    table = read_table(path)
    assert (table.names, table.rows, table.lines) == (["image", "größe"], [["a.png", "1"]], [2])
    path.write_bytes(b"image,gr\xf6\xdfe\n")
    with pytest.raises(TableError, match=r"attributes\.csv line 1: not UTF-8 text"):
        read_table(path)
