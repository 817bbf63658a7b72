"""metrics.jsonl: what a run measured of itself."""

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Self

import numpy as np

from data_pipeline.files import write_text
from data_pipeline.text_files import whole_lines
from persongen_jax.training.logs.csv_file import CsvFile
from persongen_jax.training.logs.retrying_file import RetryingFile


class MetricsFile:
    """metrics.jsonl: one line per ``log_every`` steps, with the mean over them.

    "skipped" counts the steps whose loss or gradient was not finite; the other numbers are means
    over the remaining steps, null if there are none. Lines that hit a full disk are kept for later.

    Resuming drops the lines after the resumed step, because they are written again. ``kept`` are
    the steps before the resumed one that belong to the next line; a checkpoint holds them.

    Args:
        table: whether the lines are also written to metrics.csv next to it.
    """

    def __init__(self, path: Path, start: int, kept: Iterable[dict] = (), table: bool = False):
        rows = [line for line in _lines(path) if json.loads(line)["step"] <= start]
        write_text(path, "".join(rows))
        self.file = RetryingFile(path)
        self.table = CsvFile(path.with_suffix(".csv"), path) if table else None
        self._kept = list(kept)

    def keep(self, metrics: dict) -> None:
        """Remember a step's metrics; they stay on the device, so that nothing waits for them."""
        self._kept.append(metrics)

    def kept(self) -> list[dict]:
        """A new list of the remembered steps as plain floats."""
        self._kept = [{k: float(v) for k, v in step.items()} for step in self._kept]
        return list(self._kept)

    def write(self, step: int, speeds: dict) -> dict:
        """Write the line of ``step`` and return it."""
        kept = self.kept()
        good = [step for step in kept if not step["skipped"]]
        means = {k: float(np.mean([m[k] for m in good])) if good else math.nan for k in kept[0]}
        first = {name: means.pop(name) for name in ("loss", "grad_norm")}
        means["skipped"] = len(kept) - len(good)
        row = {"step": step, **first, **means, **speeds}
        numbers = {k: v if math.isfinite(v) else None for k, v in row.items()}
        self.file.write((json.dumps(numbers) + "\n").encode())
        self.file.flush()
        if self.table:
            self.table.write(numbers)
        self._kept = []
        return row

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_):
        self.file.close()
        if self.table:
            self.table.close()


def _lines(path: Path) -> list[str]:
    """The complete lines; a crash may have cut the last one short."""
    return [line + "\n" for line in whole_lines(path)] if path.exists() else []


def loss_summary(path: Path) -> str:
    """The loss at the beginning and the end of a run, each the mean of a tenth of its lines."""
    losses = [json.loads(line)["loss"] for line in _lines(path)]
    losses = [loss for loss in losses if loss is not None]
    if not losses:
        return "loss: no steps were run"
    tenth = max(1, len(losses) // 10)
    return f"loss: {np.mean(losses[:tenth]):.4f} at first, {np.mean(losses[-tenth:]):.4f} at last"
