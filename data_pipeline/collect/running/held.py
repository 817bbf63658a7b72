"""Whom earlier runs held out, in the work folder: held_out.json.

    {"0": {"people": ["Ann"], "pictures": ["0123…"]}}

by the seed of the draw, in the order in which they were held out. Another seed draws anew; delete
the file to do so with the same one.
"""

import json
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from data_pipeline.collect.running.stages import Chosen
from data_pipeline.collect.settings import Split
from data_pipeline.collect.split import OUT_OF_TRAIN, Held, drawn
from data_pipeline.files import write_text
from data_pipeline.text_files import TextError, read_json

FILE = "held_out.json"


def read_held(work: str | Path, settings: Split) -> Held:
    """What earlier runs with this seed held out.

    Raises:
        TextError: the file is not ours.
    """
    path = Path(work) / FILE
    found = _read(path).get(str(settings.seed), {})
    try:
        return Held(tuple(map(str, found["people"])), tuple(found["pictures"])) if found else Held()
    except (KeyError, TypeError) as error:
        raise TextError(f"{path}: not a list of ours ({error!r}); delete it to draw anew") from None


def keep_held(work: str | Path, chosen: Chosen, settings: Split) -> None:
    """Adds what a run held out."""
    before = read_held(work, settings).renamed(chosen.names)
    out = [name for name, kind in chosen.sets.items() if kind == OUT_OF_TRAIN]
    pictures = [c for c in chosen.kept if c.order in chosen.held]
    held = before.with_(
        sorted(out, key=lambda name: drawn(name, settings)),
        (c.picture.key for c in sorted(pictures, key=lambda c: drawn(c.identity, settings))),
    )
    path = Path(work) / FILE
    found = _read(path) | {str(settings.seed): {"people": held.people, "pictures": held.pictures}}
    write_text(path, json.dumps(found, ensure_ascii=False) + "\n")


def remove_held(work: Path, is_name: Callable[[str], bool], keys: Collection[str]) -> None:
    """Takes people and pictures out of the list."""
    found = _read(work / FILE)
    if found:
        for held in found.values():
            held["people"] = [name for name in held["people"] if not is_name(name)]
            held["pictures"] = [key for key in held["pictures"] if key not in keys]
        write_text(work / FILE, json.dumps(found, ensure_ascii=False) + "\n")


def _read(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}
