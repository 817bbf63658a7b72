"""The state of a work folder: the last line of a row holds, and half a line does not."""

import json

import pytest

from data_pipeline.collect.download.state import State, StateError


def test_the_last_line_of_a_row_holds(tmp_path):
    state = State(tmp_path)
    state.add("a", "failed", reason="dns")
    state.add("b", "done", tries=1)
    state.add("a", "done", tries=2)
    state.close()
    state.add("c", "done")  # a thread that comes late
    again = State(tmp_path)
    assert {row: entry["state"] for row, entry in again.entries.items()} == dict.fromkeys(
        "ab", "done"
    )
    assert again.entries["a"]["tries"] == 2
    again.close()


def test_half_a_line_is_cut_off(tmp_path):
    state = State(tmp_path)
    state.add("a", "done")
    state.close()
    path = tmp_path / "state.jsonl"
    whole = path.read_bytes()
    for torn in (b'{"row": "b", "sta', b'{"row": "b", "state": "done"}', b"\x00\x00"):
        path.write_bytes(whole + torn)
        state = State(tmp_path)
        assert set(state.entries) == {"a"} and path.read_bytes() == whole
        state.add("c", "done")
        state.close()
        assert [json.loads(line)["row"] for line in path.read_text().splitlines()] == ["a", "c"]


def test_a_line_that_is_not_ours(tmp_path):
    (tmp_path / "state.jsonl").write_text('{"row": "a", "state": "done"}\n{"row": "b"}\n')
    with pytest.raises(StateError, match="state.jsonl line 2: not a line of ours"):
        State(tmp_path)


def test_one_download_at_a_time(tmp_path):
    state = State(tmp_path)
    with pytest.raises(StateError, match="another download is at work"):
        State(tmp_path)
    state.close()
    State(tmp_path).close()
