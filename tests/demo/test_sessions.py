"""One visitor's request: told of, ended, and nothing of theirs left behind."""

import threading
from types import SimpleNamespace

import pytest

from persongen_jax.demo.sessions import Sessions, sentence, stream


def test_a_stream_tells_steps_previews_and_the_end():
    def work(progress, on_preview):
        for n in range(4):
            progress(1)
            if n == 1:
                on_preview("image")
        return "made"

    end = threading.Event()
    told = list(stream(work, 4, end))
    assert not end.is_set()  # what follows may go on
    assert told == [
        *(("steps", 1), ("steps", 2), ("preview", "image"), ("steps", 3), ("steps", 4)),
        ("done", "made"),
    ]


def test_it_ends_when_somebody_cancels():
    end = threading.Event()

    def work(progress, on_preview):
        progress(1)
        end.wait()
        progress(1)
        raise AssertionError("it went on")

    told = []
    for kind, _ in stream(work, 9, end):
        told.append(kind)
        end.set()
    assert told == ["steps", "ended"]


def test_it_ends_when_nobody_listens_any_more():
    ended = threading.Event()

    def work(progress, on_preview):
        try:
            while True:
                progress(1)
        finally:
            ended.set()

    listened = stream(work, 9, threading.Event())
    assert next(listened) == ("steps", 1)
    listened.close()  # as Gradio does when the page is closed
    assert ended.wait(10)


def test_errors_come_through():
    def work(progress, on_preview):
        raise ValueError("<b>no</b>")

    with pytest.raises(ValueError, match="no") as raised:
        list(stream(work, 1, threading.Event()))
    shown = sentence(raised.value)
    assert "<b>" not in shown.message and "no" in shown.message
    assert sentence(shown) is shown


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (FileNotFoundError(2, "No such file", "/srv/people/me.png"), "me.png"),
        (ValueError("/srv/a/b.json: no number\nwhy"), "b.json: no number"),
        (ValueError("give a/b or http://x/y/z"), "give a/b or http://x/y/z"),
        (KeyError("/srv/secret"), "finds why in its log"),
    ],
)
def test_folders_and_traces_stay_here(error, said):
    shown = sentence(error).message
    assert said in shown and "srv" not in shown


def test_uploads_leave_with_their_visitor(tmp_path):
    sessions = Sessions(tmp_path / "uploads", [str(tmp_path / "uploads" / "stranger.png")])
    anna, bert = SimpleNamespace(session_hash="a"), SimpleNamespace(session_hash="b")
    files = {}
    for name in ("hers", "both"):
        files[name] = tmp_path / "uploads" / name / "me.png"
        files[name].parent.mkdir(parents=True)
        files[name].write_bytes(b"x")
        sessions.keep(anna, str(files[name]))
    everybodys = tmp_path / "uploads" / "stranger.png"
    everybodys.write_bytes(b"x")
    sessions.keep(anna, str(everybodys))
    elsewhere = tmp_path / "image.png"
    elsewhere.write_bytes(b"x")
    sessions.keep(anna, str(elsewhere))
    sessions.keep(bert, str(files["both"]))
    running = sessions.begin(anna)
    sessions.leave(anna)
    assert running.is_set()
    assert not files["hers"].parent.exists() and elsewhere.exists() and everybodys.exists()
    assert files["both"].exists()  # the same photograph is somebody else's too
    sessions.leave(bert)
    assert not files["both"].exists()
    sessions.end(bert)  # who is not there any more
