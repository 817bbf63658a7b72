"""Lists of rows in files, and what is said of those that cannot be used."""

import gzip
import json

import pytest

from data_pipeline.collect.records import Row
from data_pipeline.collect.rows.columns import RowError, make_row
from data_pipeline.collect.rows.sources import read_rows
from data_pipeline.text_files import TextError

ROWS = [
    Row("Ann", "https://a.org/1.jpg", caption="a woman, smiling"),
    Row("Zoë", "https://a.org/2.jpg?x=1", "ab" * 32, "CC0", "yes", "https://a.org/"),
]
TABLES = {
    "rows.jsonl": "\n".join(json.dumps(row.to_json()) for row in ROWS),
    "rows.json": json.dumps([row.to_json() for row in ROWS]),
    "rows.csv": "identity,url,sha256,license,consent,source_page,text\n"
    'Ann,https://a.org/1.jpg,,,,,"a woman, smiling"\n'
    f"Zoë,https://a.org/2.jpg?x=1,{'AB' * 32},CC0,yes,https://a.org/,\n",
    "rows.tsv": "Person\tURL\tsha256\tlicence\tconsent\tsource\tcaption\r\n"
    "Ann\thttps://a.org/1.jpg\t\t\t\t\ta woman, smiling\r\n"
    f"Zoë\thttps://a.org/2.jpg?x=1\t{'ab' * 32}\tCC0\tyes\thttps://a.org/\t\r\n",
}


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gz"])
@pytest.mark.parametrize("name", TABLES)
def test_all_say_the_same(tmp_path, name, packed):
    data = TABLES[name].encode()
    path = tmp_path / (name + ".gz" * packed)
    path.write_bytes(gzip.compress(data) if packed else data)
    found = read_rows(path)
    assert found.rows == ROWS and not found.places and not found.notes


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gz"])
def test_parquet(tmp_path, packed):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    table = pyarrow.Table.from_pylist([{**row.to_json(), "width": 3} for row in ROWS])
    parquet.write_table(table, tmp_path / "rows.parquet")
    path = tmp_path / "rows.parquet"
    if packed:
        path = tmp_path / "rows.parquet.gz"
        path.write_bytes(gzip.compress((tmp_path / "rows.parquet").read_bytes()))
    found = read_rows(path)
    assert found.rows == ROWS and found.notes == [f"{path.name}: column 'width' is not read"]


def test_other_names_and_a_folder_of_lists(tmp_path):
    (tmp_path / "a.csv").write_text("who,where\nAnn,https://a.org/1.jpg\nann,https://a.org/1.jpg\n")
    (tmp_path / "b.csv").write_text("who,where\nAnn,https://a.org/1.jpg\n Bob  B,https://b.org/\n")
    found = read_rows(tmp_path, {"identity": "who", "url": "where"})
    assert [row.identity for row in found.rows] == ["Ann", "ann", "Bob B"]
    assert found.notes[0] == "1 rows repeat an identity and address; the first counts"
    assert "'Ann' and 'ann' look alike" in found.notes[1]


@pytest.mark.parametrize(
    "name, text, said",
    [
        ("a.csv", "name,site\nAnn,x\n", "a.csv: no column url; it has 'name', 'site'"),
        ("a.jsonl", '{"url": "u"}', "no column identity; it has 'url'"),
        ("a.jsonl", '{"identity": "a", "url": "u"}\n{"url": "u"}', "line 2: the identity is empty"),
        ("a.csv", "identity,url\n  ,u\n", "line 2: the identity is empty"),
        ("a.csv", "identity,url\nann,\n", "line 2: the url is empty"),
        ("a.csv", "identity,url\n../ann,u\n", "line 2: the identity '../ann' has parts of a path"),
        ("a.csv", "identity,url\n..,u\n", "line 2: the identity '..' has parts of a path"),
        ("a.csv", "identity,url\na\\b,u\n", "has parts of a path"),
        ("a.jsonl", '{"identity": "a\\u0007b", "url": "u"}', "holds control characters"),
        ("a.jsonl", '{"identity": ["a"], "url": "u"}', "line 1: identity is list; give a text"),
        ("a.csv", f"identity,url\n{'a' * 300},u\n", "has more than 200 bytes"),
        ("a.csv", "identity,url,sha256\nann,u,12\n", "line 2: sha256 '12' is not 64"),
        (
            "a.csv",
            "identity,url\nann\nbob,u,v\n",
            "2 rows cannot be used.*\n.*line 2: other than 2",
        ),
        ("a.csv", 'identity,url\n"ann,u\n', "a.csv line 2: not a table"),
        ("a.csv", "identity,url\n", "a.csv: no rows in it"),
        ("a.json", '{"identity": "a"}', "dict instead of a list"),
        ("a.jsonl", "[1]\n", "line 1: list instead of an object"),
        ("a.csv.gz", "identity,url\n", "not gzip's format"),
        ("a.parquet", "identity,url\n", "a.parquet: not Parquet that can be read"),
        ("a.xlsx", "", "a.xlsx: not a list that is read here"),
    ],
)
def test_lists_that_cannot_be_used(tmp_path, name, text, said):
    (tmp_path / name).write_text(text)
    with pytest.raises(RowError, match=said) as caught:
        read_rows(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(RowError, match="absent.csv: no such file"):
        read_rows(tmp_path / "absent.csv")
    (tmp_path / "a.jsonl").write_text('{"identity": "ann"')
    with pytest.raises(TextError, match="a.jsonl line 1: not JSON"):
        read_rows(tmp_path / "a.jsonl")
    (tmp_path / "b.csv.gz").write_bytes(gzip.compress(b"identity,url\n" * 99)[:30])
    with pytest.raises(RowError, match="b.csv.gz: damaged"):
        read_rows(tmp_path / "b.csv.gz")
    (tmp_path / "c.csv").write_text("a,url\nann,u\n")
    with pytest.raises(RowError, match="no column 'b'; it has 'a', 'url'"):
        read_rows(tmp_path / "c.csv", {"identity": "b"})
    with pytest.raises(RowError, match="column 'who': no field of a row"):
        read_rows(tmp_path / "c.csv", {"who": "a"})
    (tmp_path / "empty").mkdir()
    with pytest.raises(RowError, match="neither images nor tars nor lists"):
        read_rows(tmp_path / "empty")


def test_a_key_is_of_identity_and_address():
    assert Row("a", "b").key != Row("b", "a").key and len(Row("a", "b").key) == 16
    assert Row("a", "b", licence="x").key == Row("a", "b").key


@pytest.mark.parametrize("said", ["no", "False", "0", "none", " No ", False, 0, 0.0, None, "n/a"])
def test_no_is_no_consent(said):
    columns = {"identity": "identity", "url": "url", "consent": "consent"}
    entry = {"identity": "ann", "url": "u", "consent": said}
    assert make_row(entry, columns).consent == ""
    assert make_row({**entry, "consent": "form of 2026-01-12"}, columns).consent != ""
    assert make_row({**entry, "consent": True}, columns).consent == "yes"
