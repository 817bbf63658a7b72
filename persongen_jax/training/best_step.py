"""best.json in a run's working directory: which checkpoint is its best, by which figure."""

import json
from pathlib import Path

from data_pipeline.files import write_text
from data_pipeline.text_files import read_json

FILE = "best.json"
BEST = "best"  # RUN/checkpoints/best names that checkpoint


def write_best(workdir: Path, metric: str, set_name: str, step: int, value: float) -> None:
    """Say that the checkpoint of ``step`` is the best."""
    row = {"metric": metric, "set": set_name, "step": step, "value": value}
    write_text(workdir / FILE, json.dumps(row) + "\n")


def read_best(workdir: Path) -> int:
    """The step of the best checkpoint.

    Raises:
        FileNotFoundError: the run has not found any.
    """
    path = workdir / FILE
    if not path.exists():
        raise FileNotFoundError(
            f"{workdir / 'checkpoints' / BEST}: this run has no {FILE}; train with "
            "--config.best_metric=NAME, or name a step"
        )
    return read_json(path)["step"]
