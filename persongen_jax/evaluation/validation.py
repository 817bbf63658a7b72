"""Validation during training: metrics.jsonl, contact sheets and trajectories of a run.

    validator = Validator(system, workdir, start_step)
    if not validator.has(step):
        validator(model, step)

writes, under ``workdir/validation``: metrics.jsonl, a row per step and set; a contact sheet
``step_000500_out_of_train.png`` for each; and trajectories.png. Their contents do not depend on the
time or on how often the run was interrupted.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from data_pipeline.files import atomic_write, write_text
from persongen_jax.config import import_object
from persongen_jax.evaluation.trajectories import plot_trajectories, read_rows
from persongen_jax.systems.base import System
from persongen_jax.training.stopping import Stopped


class Evaluation(Protocol):
    """Measures a system's model.

    Attributes:
        should_stop: called repeatedly; True raises stopping.Stopped.
        generates: whether the images are generated, not real ones.
        metrics: what is measured; each has a ``name``, and ``less_is_better`` and ``target`` as
            metrics.base.Metric.
    """

    should_stop: Callable[[], bool]
    generates: bool
    metrics: Sequence[Any]

    def __call__(self, model: Any, step: int) -> dict[str, Any]:
        """For each of ``system.validation_sets`` a Result: its row of metrics.jsonl, and images."""

    def sheet(self, name: str, images: np.ndarray) -> np.ndarray:
        """A set's contact sheet, uint8 [h, w, 3]."""

    def rows(self, name: str, images: np.ndarray) -> list[tuple]:
        """What the sheet is made of: (number of the owner, number of the prompt, Row) each."""


class Validator:
    """Evaluates a system's model on its validation sets; without sets it does nothing.

    Args:
        system: systems.base.System.
        workdir: of the run.
        start_step: the step from which training resumes; rows of later steps are dropped.

    Attributes:
        should_stop: called regularly; True ends a validation without writing anything.
    """

    def __init__(self, system: System, workdir: str | Path, start_step: int = 0):
        self.folder = Path(workdir) / "validation"
        self.path = self.folder / "metrics.jsonl"
        self.should_stop = lambda: False
        self.sets: tuple[str, ...] = ()
        self.evaluation: Evaluation | None = None
        # A run that does not validate loads neither judges nor pipeline.
        if not system.validation_sets or not system.config.validation_every:
            return
        self.sets, self.label = system.validation_sets, system.label
        self.evaluation = open_evaluation(system)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._write([row for row in read_rows(self.path) if row["step"] <= start_step])

    def has(self, step: int) -> bool:
        """Whether the rows of ``step`` exist already."""
        there = {row["set"] for row in read_rows(self.path) if row["step"] == step}
        return set(self.sets) <= there

    def __call__(
        self,
        model: Any,
        step: int,
        write_scalar: Callable[[str, float, int], object] | None = None,
        write_image: Callable[[str, np.ndarray, int], object] | None = None,
    ) -> dict[str, float]:
        """Evaluate ``model`` as it is after ``step`` steps.

        Args:
            model: the system's, with its current weights.
            write_scalar: called with (name, number, step); write_image with (name, uint8 [h, w, 3],
                step); both from TensorBoard.

        Returns:
            The means by "set/metric"; {} if ``should_stop`` ended it.
        """
        if self.evaluation is None:
            return {}
        self.evaluation.should_stop = lambda: self.should_stop()
        try:
            results = self.evaluation(model, step)
        except Stopped:
            return {}
        summary = {}
        for name, result in results.items():
            sheet = self.evaluation.sheet(name, result.images)
            write_image_file(self.folder / f"step_{step:06d}_{name}.png", sheet)
            if write_image:
                write_image(f"validation/{name}", sheet, step)
            summary |= {f"{name}/{k}": m["mean"] for k, m in result.row["metrics"].items()}
        rows = [row for row in read_rows(self.path) if row["step"] != step]
        self._write(rows + [result.row for result in results.values()])
        plot_trajectories({self.label: read_rows(self.path)}, self.folder / "trajectories.png")
        summary = {name: value for name, value in summary.items() if value is not None}
        said = ", ".join(f"{name} {value:.3g}" for name, value in summary.items())
        print(f"validation, step {step}: {said or 'nothing measured'} -> {self.folder}")
        if write_scalar:
            for name, value in summary.items():
                write_scalar(f"validation/{name}", value, step)
        return summary

    def _write(self, rows: list[dict]):
        """The file in one piece: all rows of a step or none."""
        write_text(self.path, "".join(json.dumps(row) + "\n" for row in rows))


def write_image_file(path: Path, image: np.ndarray) -> None:
    """A PNG in one piece."""
    with atomic_write(path) as partial:
        Image.fromarray(image).save(partial, format="png")


def open_evaluation(system: System) -> Evaluation:
    """What measures the system: ``system.evaluation``, opened with it.

    Raises:
        ValueError: the system has none, or it needs something that the config lacks.
    """
    if not system.evaluation:
        raise ValueError(f"config.validation_every: {system.label} has nothing to validate with")
    return import_object(system.evaluation, "evaluation")(system)
