"""The best checkpoint of a run by a metric of its validations, and when to stop early.

Both follow from validation/metrics.jsonl alone, so an interruption changes nothing about them. The
validation before the first step does not count, as nothing is trained there.
"""

from pathlib import Path
from typing import Any, NamedTuple

from persongen_jax.evaluation.trajectories import read_rows
from persongen_jax.evaluation.validation import Validator
from persongen_jax.parallel import distributed
from persongen_jax.systems.base import System
from persongen_jax.training.best_step import FILE, write_best
from persongen_jax.training.checkpoint import saved_steps


class Value(NamedTuple):
    """What a validation measured at a step."""

    step: int
    value: float


class Best:
    """Follows ``config.best_metric`` on ``config.best_set``; without a metric it does nothing.

    Args:
        system: what is trained.
        validator: of the run, opened.
        workdir: of the run, with best.json.

    Attributes:
        acts: whether there is a metric, so that every validated step needs a checkpoint.
        step: of the best checkpoint, None so far.
        ended: whether ``config.early_stopping`` ends the run.

    Raises:
        ValueError: a metric or set that the run's validations do not have.
    """

    def __init__(self, system: System, validator: Validator, workdir: Path):
        config = system.config
        self.acts, self.patience = bool(config.best_metric), config.early_stopping
        self.step: int | None = None
        self.best: Value | None = None
        self.ended = False
        self._excluded: frozenset[int] = frozenset()
        if not self.acts:
            if self.patience:
                raise ValueError(
                    f"config.early_stopping={self.patience} needs a metric to go by: "
                    "--config.best_metric=NAME, one of config.metrics"
                )
            return
        self.name = config.best_metric
        self.metric = _metric_of(self.name, validator)
        self.set = _set_of(config.best_set, validator)
        self.workdir, self._rows = workdir, validator.path
        values, saved = self._values(), saved_steps(workdir / "checkpoints")
        found = best_of(values, self.metric)
        if found and found.step not in saved:
            # The metric was chosen late: those whose checkpoints are deleted cannot be the best.
            self._excluded = frozenset(values) - set(saved)
        self.look()

    def look(self) -> None:
        """Read the validations again; all processes must call it."""
        if not self.acts:
            return
        values = self._values()
        allowed = {step: v for step, v in values.items() if step not in self._excluded}
        self.best = best_of(allowed, self.metric)
        if self.best is None:
            (self.workdir / FILE).unlink(missing_ok=True)
        else:
            self.step = self.best.step
            write_best(self.workdir, self.name, self.set, self.best.step, self.best.value)
        self.stale = sum(self.step is not None and step > self.step for step in values)
        self.ended = distributed.broadcast_from_first(0 < self.patience <= self.stale)

    def report(self, before_its_end: bool) -> list[str]:
        """Lines for the end of a run; ``before_its_end``: before ``config.steps``."""
        if not self.acts or self.best is None:
            return []
        lines = [
            f"best {self.name} on {self.set}: {self.best.value:.4g} at step {self.step}, "
            f"{self.workdir / 'checkpoints' / 'best'}"
        ]
        if self.ended and before_its_end:
            lines.append(
                f"stopped early: {self.stale} validations without a better one "
                f"(config.early_stopping={self.patience}); to train on, repeat the command with a "
                "larger number, or with --config.early_stopping=0"
            )
        return lines

    def _values(self) -> dict[int, float | None]:
        """The metric by the step of the validation; None where it could not be measured."""
        rows = [row for row in read_rows(self._rows) if row["set"] == self.set and row["step"] > 0]
        return {row["step"]: row["metrics"].get(self.name, {}).get("mean") for row in rows}


def best_of(values: dict[int, float | None], metric: Any) -> Value | None:
    """The first of the best values; None if nothing was measured.

    Args:
        values: by step.
        metric: its ``less_is_better`` and ``target`` say what is better; see metrics/base.py.
    """
    measured = [Value(step, value) for step, value in values.items() if value is not None]
    return max(measured, key=lambda v: (goodness(v.value, metric), -v.step), default=None)


def goodness(value: float, metric: Any) -> float:
    """A number that is larger for better values of the metric."""
    if metric.target is not None:
        return -abs(value - metric.target)
    return -value if metric.less_is_better else value


def _metric_of(name, validator):
    """The metric of this name, which the validations measure."""
    if validator.evaluation is None:
        raise ValueError(
            f"config.best_metric={name!r} needs validations: config.validation_every above 0, and "
            "a set to validate on"
        )
    measured = {metric.name: metric for metric in validator.evaluation.metrics}
    if name not in measured:
        raise ValueError(
            f"config.best_metric={name!r} is not measured by this run's validations, which have "
            f"{', '.join(measured) or 'no metric'}; name it in config.metrics, with its judge"
        )
    return measured[name]


def _set_of(name, validator):
    sets = validator.sets
    if not name:
        # People held out from training show best whether more of it helps.
        return "out_of_train" if "out_of_train" in sets else sets[0]
    if name not in sets:
        raise ValueError(
            f"config.best_set={name!r} is not validated; this run has {', '.join(sets)}"
        )
    return name
