"""Validation during training: metrics.jsonl, contact sheets and trajectories of a run.

    validator = Validator(system, workdir, start_step)
    if not validator.has(step):
        validator(model, step)

writes, under ``workdir/validation``: metrics.jsonl, a row per step and set; a contact sheet
``step_000500_out_of_train.png`` for each; and trajectories.png. Their contents do not depend on the
time or on how often the run was interrupted.
"""

import json
import os
from pathlib import Path

from PIL import Image

from persongen_jax.evaluation.trajectories import plot_trajectories, read_rows
from persongen_jax.training.stopping import Stopped


class Validator:
    """Evaluates a system's model on its validation sets; without sets it does nothing.

    Args:
        system: systems.base.System.
        workdir: of the run.
        start_step: the step from which training resumes; rows of later steps are dropped.

    Attributes:
        should_stop: called regularly; True ends a validation without writing anything.
    """

    def __init__(self, system, workdir, start_step: int = 0):
        self.folder = Path(workdir) / "validation"
        self.path = self.folder / "metrics.jsonl"
        self.should_stop = lambda: False
        self.sets, self.evaluation = (), None
        # A run that does not validate loads neither judges nor pipeline.
        if not system.validation_sets or not system.config.validation_every:
            return
        self.sets, self.label = system.validation_sets, system.label
        self.evaluation = system.evaluation()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._write([row for row in read_rows(self.path) if row["step"] <= start_step])

    def has(self, step: int) -> bool:
        """Whether the rows of ``step`` exist already."""
        there = {row["set"] for row in read_rows(self.path) if row["step"] == step}
        return set(self.sets) <= there

    def __call__(self, model, step: int, write_scalar=None, write_image=None) -> dict[str, float]:
        """Evaluate ``model`` as it is after ``step`` steps.

        Args:
            model: the system's, with its current weights.
            write_scalar: called with (name, number, step); write_image with (name, uint8 [h, w, 3],
                step); both from TensorBoard.

        Returns:
            The means by "set/metric"; {} if ``should_stop`` ended it.
        """
        if not self.sets:
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
        """Write the file atomically: all rows of a step or none."""
        partial = self.path.with_name(self.path.name + ".part")
        partial.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        os.replace(partial, self.path)


def write_image_file(path: Path, image):
    """Write a PNG atomically."""
    partial = path.with_name(path.name + ".part")
    Image.fromarray(image).save(partial, format="png")
    os.replace(partial, path)
