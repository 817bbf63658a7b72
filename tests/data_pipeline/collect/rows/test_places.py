"""Pictures that are here already: folders, tars, and what img2dataset wrote."""

import io
import json
import tarfile
from concurrent.futures import ThreadPoolExecutor

import pytest

from data_pipeline.collect.download.local import copy_local
from data_pipeline.collect.download.outcomes import Failed
from data_pipeline.collect.rows.columns import RowError
from data_pipeline.collect.rows.place import Place, PlaceError
from data_pipeline.collect.rows.sources import read_rows


def write_tar(path, members):
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            data = data if isinstance(data, bytes) else json.dumps(data).encode()
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def contents(found):
    """(identity, url, caption, bytes) of each row; None for bytes that are to be fetched."""
    out = []
    for row in found.rows:
        data = None
        if row.key in found.places:
            with found.places[row.key].open() as file:
                data = file.read()
        out.append((row.identity, row.url, row.caption, data))
    return out


def test_a_folder(tmp_path):
    root = tmp_path / "photos"
    for name, data in [
        ("ann/1.jpg", b"one"),
        ("ann/1.txt", b"a woman\n"),
        ("ann/x/2.png", b"two"),
    ]:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    (root / "20_bob man").mkdir()
    (root / "20_bob man" / "3.jpg").write_bytes(b"three")
    found = read_rows(root)
    assert contents(found) == [
        ("bob man", "file:photos/20_bob man/3.jpg", "", b"three"),
        ("ann", "file:photos/ann/1.jpg", "a woman", b"one"),
        ("ann", "file:photos/ann/x/2.png", "", b"two"),
    ]
    assert found.notes[0] == "kohya's folders"
    with pytest.raises(RowError, match="a folder of images has no columns"):
        read_rows(root, {"identity": "x"})


def test_webdataset(tmp_path):
    write_tar(
        tmp_path / "00000.tar",
        {
            "0001.jpg": b"one",
            "0001.json": {"identity": "ann", "url": "https://a.org/1.jpg", "sha256": "ab" * 32},
            "0001.txt": b"a woman",
            "./zoe/0002.jpg": b"two",
            "zoe/0002.json": {"caption": "a person"},
            "0003.txt": b"without a picture",
        },
    )
    write_tar(tmp_path / "00001.tar", {"bob/1.x.png": b"x", "bob/2.png": b"three"})
    found = read_rows(tmp_path)
    assert contents(found) == [
        ("ann", "https://a.org/1.jpg", "a woman", b"one"),
        ("zoe", "file:00000.tar/./zoe/0002.jpg", "a person", b"two"),
        ("bob", "file:00001.tar/bob/2.png", "", b"three"),
    ]
    assert found.rows[0].sha256 == ""  # of another file than the one in the tar
    assert found.notes == [
        "00000.tar: 1 samples without a picture are left out",
        "00001.tar: 1 samples without a picture are left out",
    ]
    assert len(read_rows(tmp_path / "00001.tar").rows) == 1


@pytest.mark.parametrize(
    "members, said",
    [
        ({"1.jpg": b"x"}, "1: no identity, neither in its json nor as a folder"),
        ({"1.jpg": b"x", "1.json": {"identity": "a/b"}}, "1: the identity 'a/b' has parts"),
        ({"a/1.jpg": b"x", "a/1.png": b"y"}, "a/1 has two pictures"),
        ({"a/1.txt": b"x"}, "no pictures in it"),
        ({"a/1.jpg": b"x", "a/1.json": b"[1]"}, "list instead of an object"),
    ],
)
def test_tars_that_cannot_be_used(tmp_path, members, said):
    write_tar(tmp_path / "a.tar", members)
    with pytest.raises(RowError, match=said):
        read_rows(tmp_path)


def test_a_tar_that_is_none_or_changes(tmp_path):
    (tmp_path / "a.tar").write_bytes(b"\x1f\x8b" + bytes(600))
    with pytest.raises(RowError, match="a.tar: not a tar that can be read .*; unpack it"):
        read_rows(tmp_path / "a.tar")
    write_tar(tmp_path / "a.tar", {"ann/1.jpg": b"x" * 2000})
    found = read_rows(tmp_path / "a.tar")
    (tmp_path / "a.tar").write_bytes(b"x" * 600)
    with pytest.raises(PlaceError, match="a.tar: shorter than it was"):
        contents(found)


@pytest.mark.parametrize("form", ["files", "webdataset", "parquet"])
def test_img2dataset(tmp_path, form):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    keys = ["000000000", "000000001", "000000002"]
    rows = [
        {"key": key, "url": f"https://a.org/{key}", "identity": "ann", "caption": "c", "n": 1}
        for key in keys
    ]
    for row, status in zip(rows, ["success", "failed_to_download", "success"], strict=True):
        row |= {"status": status, "sha256": "ab" * 32, "error_message": None}
    pictures = {keys[0]: b"zero", keys[2]: b"two"}
    if form == "files":
        (tmp_path / "00000").mkdir()
        for key, data in pictures.items():
            (tmp_path / "00000" / f"{key}.jpg").write_bytes(data)
            (tmp_path / "00000" / f"{key}.txt").write_text("c")
    elif form == "webdataset":
        write_tar(tmp_path / "00000.tar", {f"{key}.jpg": data for key, data in pictures.items()})
    else:
        rows = [{**row, "jpg": pictures.get(row["key"])} for row in rows]
    table = pyarrow.Table.from_pylist(rows)
    parquet.write_table(table, tmp_path / "00000.parquet", row_group_size=2)
    (tmp_path / "00000_stats.json").write_text("{}")
    found = read_rows(tmp_path)
    assert contents(found) == [
        ("ann", f"https://a.org/{key}", "c", data)
        for key, data in zip(keys, [b"zero", None, b"two"], strict=True)
    ]
    assert found.notes == [
        "column 'n' is not read",
        "1 rows that img2dataset has no picture of are fetched",
    ]


def test_parquet_that_changes_and_many_threads(tmp_path, monkeypatch):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = tmp_path / "a.parquet"
    table = pyarrow.table({"jpg": [bytes([n]) for n in range(40)]})
    parquet.write_table(table, path, row_group_size=40)
    opened = []
    whole = parquet.ParquetFile
    monkeypatch.setattr(parquet, "ParquetFile", lambda p: opened.append(p) or whole(p))

    def read(number):
        with Place(str(path), number, None, "jpg").open() as file:
            return file.read()

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(read, range(40))) == [bytes([n]) for n in range(40)]
    assert len(opened) == 2  # once for the groups, once for the cells
    other = tmp_path / "b.parquet"
    other.write_bytes(b"PAR1" + bytes(100))
    with pytest.raises(PlaceError, match="b.parquet: not the Parquet that it was"):
        with Place(str(other), 0, None, "jpg").open():
            pass
    with pytest.raises(Failed, match="no file not the Parquet"):
        copy_local(Place(str(other), 0, None, "jpg"), tmp_path / "out", 1000)
