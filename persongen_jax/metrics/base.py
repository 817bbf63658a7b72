"""The interface of a metric: its input, its output, and its description.

A metric is one class in one file. ``config.metrics`` names it by its name in registry.py or as
"package.module:Class"; its column, CSV cells, plot and part in comparisons follow from its
description.
"""

import abc
import functools
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
from ml_collections import ConfigDict


class NoFigure(Exception):
    """A set that a metric cannot measure; the message says why and what to do about it.

    It follows "TITLE gives no figure: ".
    """


@dataclass(eq=False)
class Cached:
    """Caches what was computed from an object for as long as the object lives."""

    _kept: dict = field(default_factory=dict, init=False, repr=False)

    def once(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """``make()``, called only the first time that ``key`` is requested.

        Args:
            key: hashable; a judge uses (itself, what), as in ``(self, "features")``.
        """
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]


@dataclass(eq=False)
class Generated(Cached):
    """The generated images of one set.

    Attributes:
        images: n images, each uint8 RGB [h, w, 3]. Sizes may differ, and an image may be read from
            its file each time that it is asked for: go through them once, and do not make one array
            of them all.
        owners: [n], whose image each is: the sample that intervals are about.
        texts: [n], what each image should show, "" where that is not known; None without a
            description in words.
        inputs: additional inputs by name, [n, ...] each, such as attributes or class labels.

    Raises:
        ValueError: lengths that differ.
    """

    images: Sequence[np.ndarray] | np.ndarray
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
    """A person or thing with real images. An image is uint8 RGB [h, w, 3].

    Attributes:
        name: as in ``Generated.owners``.
        references: () -> the images that the method read; [] for none.
        pictures: (limit=None) -> at most ``limit`` real images, the references first.
        group: that they belong to, by what is grouped: {"age": "old"}.
    """

    name: str
    references: Callable[[], list[np.ndarray]]
    pictures: Callable[..., list[np.ndarray]]
    group: Mapping[str, str] = field(default_factory=dict)


@dataclass(eq=False)
class People(Cached):
    """Owners in a fixed order; ``open`` is called on first access."""

    open: Callable[[], Sequence[Owner]]

    @functools.cached_property
    def owners(self) -> tuple[Owner, ...]:
        return tuple(self.open())


@dataclass(eq=False)
class Known(Cached):
    """What is known about one set, created once when a validation opens.

    Attributes:
        name: of the set.
        people: the people to generate.
        others: additional people for searches by metrics; may be empty, and may include some of
            ``people``. Several sets share the object, and so what was computed from it.
    """

    name: str
    people: People
    others: People


@dataclass(frozen=True)
class Values:
    """The output of a metric.

    Attributes:
        values: of images, [n] float64, NaN for an image that cannot be measured (without a face);
            of a set, one number, NaN if it cannot be measured.
        n: of a set, the number of generated images behind the number; unused otherwise.
        interval: of a set, (low, high) at 95 % if the metric knows it.
        facts: additional facts of the measure that JSON can hold. "among": the number of candidates
            of which one is right, so that chance is 1 / among. "note": a sentence without a full
            stop that goes with the figure wherever it is shown.
        parts: of images, the same figure for parts of its subject, [n] each by the part's name,
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
        name: a unique identifier: key in metrics.jsonl, CSV column, file name of the plot.
        title: the column's header and the plot's label; an instance may have its own.
        form: the format of a table's cell, such as "{:.1%}".
        over: "images" or "set", see :class:`Values`.
        plotted: whether it has a trajectory.
        bounds: (least, most) that a value can be; (0, 1) for shares, whose intervals are their own;
            None if unknown. Values beyond them are an error.
        less_is_better: whether a smaller value is the better one, as of a distance.
        target: the best value, where that is neither the least nor the largest; else None.
        chance: the value of guessing; None if meaningless or dependent on the set ("among").
        judge_key: the config's key that names the judge; "" if there is none.
        judge: the network file that judges, in one line; "" if none does.
    """

    name: ClassVar[str]
    title: str
    form: ClassVar[str] = "{:.3f}"
    over: ClassVar[Literal["images", "set"]] = "images"
    plotted: ClassVar[bool] = True
    bounds: ClassVar[tuple[float, float] | None] = None
    less_is_better: ClassVar[bool] = False
    target: ClassVar[float | None] = None
    chance: ClassVar[float | None] = None
    judge_key: ClassVar[str] = ""
    judge: str = ""

    def __init__(self, config: ConfigDict, judges: Any):
        """Open the judge; called once, before the first step of training.

        Args:
            config: the experiment's.
            judges: the shared networks, judges.Judges; each is loaded on first use.

        Raises:
            NoJudge: the config names no judge, so the metric is not measured.
            ValueError, OSError: the judge's file cannot be used.
        """
        del config, judges

    def networks(self) -> tuple:
        """The judging networks' weights, a pytree of arrays each, for ``check_judges``.

        () if they do not run in JAX, or if there is no judge.
        """
        return ()

    def prepare(self, known: Known) -> None:
        """Read what is needed from a set, so that its faults show before training begins."""
        del known

    @abc.abstractmethod
    def __call__(self, generated: Generated, known: Known) -> Values | None:
        """Measure; None if this set cannot be measured at all and gets no figure.

        Raises:
            NoFigure: likewise, with the reason.
        """
