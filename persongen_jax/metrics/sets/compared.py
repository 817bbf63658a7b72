"""The base of distances between the generated and the real images of a set, in features."""

import abc
from collections.abc import Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from persongen_jax.metrics.base import Generated, Known, Metric, NoFigure, Values
from persongen_jax.metrics.feature_judges import FeatureJudge
from persongen_jax.metrics.intervals.jackknife import Groups, group_people, jackknife_interval
from persongen_jax.metrics.judged import check_finite
from persongen_jax.metrics.judges import Judges

INSTEAD = "read KID or CMMD (kid, cmmd of --metrics)"


class ComparedSets(Metric):
    """A distance of the generated images to all real images of the set's people.

    The interval is over people (intervals/jackknife.py): a person is left out with both kinds of
    images. Facts: "n_real", those of ``figures``, and a "note" if ``few`` has one.

    Attributes:
        least: the least possible distance, which bounds the interval; None if there is none.

    Raises, when called:
        NoFigure: fewer than two images on either side.
    """

    over, less_is_better = "set", True
    least: float | None = 0.0

    def __init__(self, config: ConfigDict, judges: Judges):
        self.encoder = self.open_judge(config, judges)
        self.judge = config[self.judge_key]

    @abc.abstractmethod
    def open_judge(self, config: ConfigDict, judges: Judges) -> FeatureJudge:
        """The encoder that ``judge_key`` names; NoJudge if it names none."""

    @abc.abstractmethod
    def distance(self, a: np.ndarray, b: np.ndarray) -> float:
        """Of generated [n, d] and real [m, d] features, float64, n and m above 1."""

    def few(self, n: int, m: int, d: int) -> str:
        """What to say of n generated and m real images with d features; "" if there are enough."""
        del n, m, d
        return ""

    def figures(self, a: np.ndarray, b: np.ndarray) -> tuple[float, Mapping[str, Any]]:
        """``distance`` of all images, and further facts of the measure that JSON can hold."""
        return self.distance(a, b), {}

    def interval(
        self, value: float, a: np.ndarray, b: np.ndarray, groups: Groups
    ) -> tuple[float, float] | None:
        """The interval over people; ``groups`` says whose the rows are."""

        def without(group):
            rows = [x[own != group] for x, own in zip((a, b), groups.rows, strict=True)]
            return self.distance(*rows) if min(map(len, rows)) > 1 else None

        return jackknife_interval(value, without, groups.people)

    def networks(self) -> tuple:
        return self.encoder.networks()

    def prepare(self, known: Known) -> None:
        check_finite(self, self.encoder.real_features(known.people), "the real pictures")

    def __call__(self, generated: Generated, known: Known) -> Values:
        by_owner = self.encoder.features_by_owner(known.people)
        real = self.encoder.real_features(known.people).astype(np.float64)
        n, m = len(generated.images), len(real)
        if min(n, m) < 2:
            raise NoFigure(f"{n} generated and {m} real images: give at least two of either")
        made = np.asarray(self.encoder.features(generated), np.float64)
        check_finite(self, made, "the generated images")
        check_finite(self, real, "the real pictures")
        owners = [name for name, rows in by_owner.items() for _ in rows]
        groups = group_people(list(map(str, generated.owners)), owners)
        value, more = self.figures(made, real)
        if note := self.few(n, m, made.shape[1]):
            more = {**more, "note": note}
        limits = self.interval(value, made, real, groups)
        if limits and self.least is not None:
            limits = max(limits[0], self.least), limits[1]
        return Values(value, n=n, interval=limits, facts={"n_real": m, **more})
