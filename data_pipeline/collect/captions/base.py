"""What a captioner gets and gives.

A captioner is an object with ``name``, ``revision``, ``prompt`` (what it is asked; "" for none) and
``ask(views, seed)``: for each view the text that the model answered, which contract.py reads. Seed
0 is the model's best answer; other seeds draw one.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np


@dataclass(frozen=True, eq=False)
class View:
    """A crop, and what was measured of it.

    image: uint8 RGB [s, s, 3]. identity: the name, which no caption may hold. face_share: of the
    crop's height. colour: see looking/looks.py. hint: the caption that came with the picture.
    class_word: what the person is, where it is known.
    """

    key: str
    image: np.ndarray
    identity: str
    face_share: float
    colour: float
    hint: str = ""
    class_word: str = ""


@dataclass(frozen=True)
class Written:
    """The texts of one picture, without the trigger word, and where they come from.

    caption: the whole; general, background, body: its parts. captioner, revision, prompt: the
    model's name, its revision, and a digest of what it was asked. tries: answers that were read.
    fallback: why the template stands in; "" where the model's own words stand.
    """

    class_word: str
    caption: str
    general: str
    background: str
    body: str
    captioner: str
    revision: str
    prompt: str
    coverage: float = 1.0
    tries: int = 1
    fallback: str = ""


@runtime_checkable
class Captioner(Protocol):
    """See the module's docstring."""

    name: str
    revision: str
    prompt: str

    def ask(self, views: Sequence[View], seed: int) -> list[str]: ...


def digest(text: str) -> str:
    """Twelve hexadecimal digits that say which prompt was used; "" for none."""
    return hashlib.sha256(text.encode()).hexdigest()[:12] if text else ""
