"""What a metric is: what it is given, what it gives back, and how it describes itself.

A metric is one class in one file. ``config.metrics`` names it, by the name that registry.py has for
it or as "package.module:Class"; its column, CSV cells, plot and place in comparisons follow from
its description.
"""

import abc
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np


@dataclass(eq=False)
class Kept:
    """Keeps what was computed from an object for as long as the object lives."""

    _kept: dict = field(default_factory=dict, init=False, repr=False)

    def once(self, key, make: Callable[[], Any]):
        """``make()``, called the first time that ``key`` is asked for.

        Args:
            key: hashable; a judge takes (itself, what), as in ``(self, "features")``.
        """
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]


@dataclass(eq=False)
class Generated(Kept):
    """The generated images of one set.

    Attributes:
        images: uint8 RGB [n, h, w, 3].
        owners: [n], whose image each is: the unit that intervals resample.
        texts: [n], what each image was asked to show; None where nothing was said in words.
        inputs: further inputs by name, [n, ...] each, such as attributes or class labels.

    Raises:
        ValueError: lengths that differ.
    """

    images: np.ndarray
    owners: Sequence[str]
    texts: Sequence[str] | None = None
    inputs: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self):
        given = {"owners": self.owners, "texts": self.texts, **self.inputs}
        for name, rows in given.items():
            if rows is not None and len(rows) != len(self.images):
                raise ValueError(f"{len(self.images)} images and {len(rows)} {name}: one each")


@dataclass(frozen=True, eq=False)
class Owner:
    """Someone, or something, of whom real pictures are known. A picture is uint8 RGB [h, w, 3].

    Attributes:
        name: as in ``Generated.owners``.
        references: () -> the pictures that the method read, [] for none.
        pictures: (limit=None) -> at most ``limit`` real pictures, the references first.
    """

    name: str
    references: Callable[[], list[np.ndarray]]
    pictures: Callable[..., list[np.ndarray]]


@dataclass(eq=False)
class People(Kept):
    """Owners in a fixed order; ``open`` is called when somebody first asks for them."""

    open: Callable[[], Sequence[Owner]]

    @functools.cached_property
    def owners(self) -> tuple[Owner, ...]:
        return tuple(self.open())


@dataclass(eq=False)
class Known(Kept):
    """What is known about one set, made once when a validation opens.

    Attributes:
        name: of the set.
        people: whose images are generated.
        others: further people, among whom a metric may look; perhaps none, perhaps some of
            ``people`` again. Several sets share the object, and so what was computed from it.
    """

    name: str
    people: People
    others: People


@dataclass(frozen=True)
class Values:
    """What a metric gives.

    Attributes:
        values: of images, [n] float64, NaN where an image cannot be measured (no face in it); of a
            set, one number, NaN if it cannot be measured.
        n: of a set, the number of generated images behind the number; not read otherwise.
        interval: of a set, (low, high) at 95 % if the metric knows one.
        facts: further facts of the measure that JSON can hold. "among": of how many candidates
            one is right, so that chance is 1 / among.
        parts: of images, the same figure of parts of what it is about, [n] each by the part's name,
            such as an attribute.
    """

    values: np.ndarray | float
    n: int | None = None
    interval: tuple[float, float] | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    parts: Mapping[str, np.ndarray] = field(default_factory=dict)


class Metric(abc.ABC):
    """One figure of generated images.

    Attributes:
        name: an identifier, unique: key in metrics.jsonl, CSV column, file name of the plot.
        title: the column's head and the plot's label.
        form: the format of a table's cell, such as "{:.1%}".
        over: "images" or "set", see :class:`Values`.
        plotted: whether it has a trajectory.
        chance: what guessing gives, None if that makes no sense or depends on the set ("among").
        judge_key: the config's key that names the judge, "" if there is none.
        judge: the network file that judges, in one line; "" if none does.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    form: ClassVar[str] = "{:.3f}"
    over: ClassVar[Literal["images", "set"]] = "images"
    plotted: ClassVar[bool] = True
    chance: ClassVar[float | None] = None
    judge_key: ClassVar[str] = ""
    judge: str = ""

    def __init__(self, config, judges):
        """Open what judges; called once, before the first step of training.

        Args:
            config: the experiment's.
            judges: the shared networks, judges.Judges; each is loaded when first asked for.

        Raises:
            NoJudge: the config names no judge, and the metric is not measured.
            ValueError, OSError: the judge's file cannot be used.
        """
        del config, judges

    def networks(self) -> tuple:
        """The judging networks' weights, a pytree of arrays each, for ``check_judges``.

        () where they do not run in JAX, or where nothing judges.
        """
        return ()

    def prepare(self, known: Known) -> None:
        """Read what is needed of a set, so that its faults are found before training begins."""
        del known

    @abc.abstractmethod
    def __call__(self, generated: Generated, known: Known) -> Values | None:
        """Measure; None if this set cannot be measured at all, and gets no figure."""
