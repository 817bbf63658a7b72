"""Files that are written in one piece."""

import threading

import pytest

from data_pipeline.files import atomic_write, write_text


def test_the_old_file_stays_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "a.json"
    write_text(path, "old")
    with atomic_write(path) as partial:
        partial.write_text("ne")
        assert path.read_text() == "old" and partial.parent == tmp_path
        partial.write_text("new")
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_after_an_error_the_old_file_is_there_and_nothing_else(error, tmp_path):
    path = tmp_path / "a.json"
    write_text(path, "old")
    with pytest.raises(error), atomic_write(path) as partial:
        partial.write_text("half")
        raise error
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_several_writers_leave_one_whole_file(tmp_path):
    path, texts = tmp_path / "a.txt", [str(n) * 50_000 for n in range(8)]
    threads = [threading.Thread(target=write_text, args=(path, text)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_text() in texts and list(tmp_path.iterdir()) == [path]
