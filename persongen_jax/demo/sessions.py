"""What belongs to one visitor: a request in progress that can be ended, and uploaded files."""

import html
import logging
import os
import queue
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from data_pipeline.cli import KNOWN
from persongen_jax.demo.offers import without_folders
from persongen_jax.demo.painting import Cancelled


class Sessions:
    """Per visitor, by gradio's session hash: whether to end, and which uploads to delete.

    Visitors are Gradio's Requests.

    Args:
        uploads: the folder of all files that are deleted.
        lasting: files in it that are everybody's and stay.
    """

    def __init__(self, uploads: Path, lasting: Iterable[str] = ()):
        self.uploads = uploads.resolve()
        self._lasting = {Path(file).resolve() for file in lasting}
        self._ends: dict[str, threading.Event] = {}
        self._files: dict[str, set[Path]] = defaultdict(set)
        self._lock = threading.Lock()

    def begin(self, visitor: Any) -> threading.Event:
        """The event that ends what this visitor starts now."""
        with self._lock:
            event = self._ends[_name(visitor)] = threading.Event()
        return event

    def end(self, visitor: Any) -> None:
        """Ends what the visitor has running."""
        with self._lock:
            event = self._ends.get(_name(visitor))
        if event is not None:
            event.set()

    def keep(self, visitor: Any, path: str) -> None:
        """Remembers an upload, to delete it with the session."""
        file = Path(path).resolve()
        with self._lock:
            if file not in self._lasting:
                self._files[_name(visitor)].add(file)

    def leave(self, visitor: Any) -> None:
        """The visitor is gone: ends what runs and deletes what was uploaded."""
        self.end(visitor)
        with self._lock:
            files = self._files.pop(_name(visitor), set())
            self._ends.pop(_name(visitor), None)
            shared = set().union(*self._files.values()) if self._files else set()
        for path in files - shared:
            if path.is_relative_to(self.uploads):
                path.unlink(missing_ok=True)
                folder = path.parent
                if folder != self.uploads and folder.is_dir() and not os.listdir(folder):
                    folder.rmdir()


# RuntimeError is the device's, when it has no more memory.
FORESEEN = (*KNOWN, RuntimeError, MemoryError)


def _name(visitor) -> str:
    return getattr(visitor, "session_hash", None) or ""


def sentence(error: BaseException) -> Exception:
    """What the page shows instead of a trace; gradio shows HTML, and prompts may hold some.

    Folders of this machine are left out. What nobody foresaw is in the log, with its trace.
    """
    import gradio as gr

    if isinstance(error, gr.Error):
        return error
    if not isinstance(error, FORESEEN):
        logging.getLogger(__name__).error("a request failed", exc_info=error)
        error = RuntimeError("this went wrong here; whoever runs the page finds why in its log")
    said = without_folders(str(error).partition("\n")[0])
    return gr.Error(html.escape(said), print_exception=False)


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
        # Nobody listens any more. Gradio closes generators in its event loop: nothing waits here
        # for the thread, which ends with its next step.
        end.set()
        raise
