"""What goes from stage to stage comes back from its files."""

import pytest

from data_pipeline.collect.records import (
    Dropped,
    Picture,
    Row,
    read_pictures,
    replace_dropped,
    write_json_lines,
)

PICTURE = Picture(
    "ab" * 32,
    "Zoë",
    "u",
    "pictures/ab/x.jpg",
    3,
    4,
    5,
    "2026-01-31T12:00:00Z",
    True,
    "",
    "yes",
    "",
    "",
    "k",
)


def test_pictures_come_back(tmp_path):
    write_json_lines(tmp_path / "pictures.jsonl", [PICTURE])
    assert read_pictures(tmp_path) == [PICTURE]
    assert Row.from_json(Row("a", "b").to_json()) == Row("a", "b")
    with pytest.raises(FileNotFoundError):
        read_pictures(tmp_path / "absent")


def test_a_stage_replaces_its_own_lines(tmp_path):
    def line(stage, key):
        return Dropped(stage, key, "ann", "u", "small", 3, 4)

    def stored():
        return (tmp_path / "dropped.jsonl").read_text()

    mine = [line("download", "1"), line("download", "2")]
    replace_dropped(tmp_path, "filter", [line("filter", "3")])
    replace_dropped(tmp_path, "download", mine)
    before = stored()
    assert [entry.split('"key": "')[1][0] for entry in before.splitlines()] == ["1", "2", "3"]
    replace_dropped(tmp_path, "download", [])
    assert stored().count("\n") == 1
    replace_dropped(tmp_path, "download", mine)
    assert stored() == before
