"""What a folder of generated images holds: whose each image is, from which prompt and seed."""

from collections import defaultdict
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from data_pipeline.records.groups import Group
from persongen_jax.metrics.pose.targets import Target


class LayoutError(ValueError):
    """A folder whose layout cannot be read; the message names it and what is needed."""


@dataclass(frozen=True)
class Entry:
    """One generated image.

    Attributes:
        file: its path relative to the folder.
        person: whose image it is.
        prompt: what tells its prompt from others: the text, or a number such as "prompt 3".
        text: the prompt's text, for metrics that read it; "" if unknown.
        seed: of its noise; "" if unknown.
        pose: that it was to have; None if unknown.
        group: of the person, as in {"age": "old"}; None if unknown.
    """

    file: str
    person: str
    prompt: str = ""
    text: str = ""
    seed: str = ""
    pose: Target | None = None
    group: Group | None = None

    @property
    def key(self) -> tuple[str, str, str]:
        """What an image of another folder must share for the two to be a pair."""
        return self.person, self.prompt, self.seed


@dataclass
class Folder:
    """A folder of generated images.

    Attributes:
        name: in tables.
        path: its own.
        layout: how it was read, in words.
        entries: in the order of their files; keys are unique after ``numbered``.
        notes: sentences about what was assumed.
        excluded: why an image is not measured, by its file.
        references: paths of the pictures that the method read, by person, where the layout says so.
    """

    name: str
    path: Path
    layout: str
    entries: list[Entry]
    notes: list[str] = field(default_factory=list)
    excluded: dict[str, str] = field(default_factory=dict)
    references: dict[str, list[str]] = field(default_factory=dict)

    def drop_excluded(self) -> None:
        """Drop the entries of excluded files."""
        self.entries = [entry for entry in self.entries if entry.file not in self.excluded]


def of_text(text: str, **more: str) -> dict[str, Any]:
    """The arguments of an Entry whose prompt is known as a text."""
    plain = " ".join(text.split())
    return {"prompt": plain, "text": plain, **more}


def numbered(entries: list[Entry], with_seeds: bool) -> tuple[list[Entry], int]:
    """Entries with unique keys, and how many needed a number for that.

    Images of one person, prompt and seed are numbered in their order: "42", "42 #2", "42 #3".

    Args:
        with_seeds: False: seeds do not count, and images are "#1", "#2", … of person and prompt.
    """
    seen: dict[tuple, int] = defaultdict(int)
    out, changed = [], 0
    for entry in entries:
        entry = entry if with_seeds else replace(entry, seed="")
        seen[entry.key] += 1
        number = seen[entry.key]
        if number > 1 or not entry.seed:
            entry = replace(entry, seed=f"{entry.seed} #{number}".strip())
            changed += 1
        out.append(entry)
    return out, changed
