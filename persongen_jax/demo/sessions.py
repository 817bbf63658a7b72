"""What belongs to one visitor: a request in progress that can be ended, and uploaded files."""

import html
import os
import queue
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from persongen_jax.demo.painting import Cancelled


class Sessions:
    """Per visitor, by gradio's session hash: whether to end, and which uploads to delete."""

    def __init__(self, uploads: Path):
        self.uploads = uploads.resolve()
        self._ends: dict[str, threading.Event] = {}
        self._files: dict[str, set[Path]] = defaultdict(set)
        self._lock = threading.Lock()

    def begin(self, request: gr.Request | None) -> threading.Event:
        """The event that ends what this visitor starts now."""
        with self._lock:
            event = self._ends[_visitor(request)] = threading.Event()
        return event

    def end(self, request: gr.Request | None = None) -> None:
        """Ends what the visitor has running."""
        with self._lock:
            event = self._ends.get(_visitor(request))
        if event is not None:
            event.set()

    def keep(self, request: gr.Request | None, path: str) -> None:
        """Remembers an upload, to delete it with the session."""
        with self._lock:
            self._files[_visitor(request)].add(Path(path).resolve())

    def leave(self, request: gr.Request) -> None:
        """The visitor is gone: ends what runs and deletes what was uploaded."""
        self.end(request)
        visitor = _visitor(request)
        with self._lock:
            files = self._files.pop(visitor, set())
            self._ends.pop(visitor, None)
            shared = set().union(*self._files.values()) if self._files else set()
        for path in files - shared:
            if path.is_relative_to(self.uploads):
                path.unlink(missing_ok=True)
                if not os.listdir(path.parent) and path.parent != self.uploads:
                    path.parent.rmdir()


def _visitor(request: gr.Request | None) -> str:
    return getattr(request, "session_hash", None) or ""


def sentence(error: BaseException) -> gr.Error:
    """What the page shows instead of a trace; gradio shows HTML, and prompts may hold some."""
    return gr.Error(html.escape(str(error).partition("\n")[0]), print_exception=False)


def stream(work: Callable[..., Any], steps: int, end: threading.Event) -> Iterator[tuple[str, Any]]:
    """Runs ``work(progress, on_preview)`` in a thread: ("steps", done), ("preview", images), ….

    The last is ("done", what it returned), or ("ended", None) after ``end`` was set. What it raises
    is raised here.

    Args:
        steps: of the whole work, of which ``progress`` reports the parts.
    """
    told: queue.Queue = queue.Queue()
    done = 0

    def progress(more):
        nonlocal done
        if end.is_set():
            raise Cancelled
        done += more
        told.put(("steps", min(done, steps)))

    def run():
        try:
            told.put(("done", work(progress, lambda images: told.put(("preview", images)))))
        except Cancelled:
            told.put(("ended", None))
        except BaseException as error:
            told.put(("error", error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        while True:
            kind, value = told.get()
            if kind == "error":
                raise value
            yield kind, value
            if kind in ("done", "ended"):
                return
    except GeneratorExit:
        end.set()  # nobody listens any more
        raise
    finally:
        thread.join()
