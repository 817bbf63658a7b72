"""A run's numbers and pictures at Weights & Biases, or in its local files."""

import json
import secrets
from pathlib import Path
from typing import Any

import numpy as np
from jax.typing import ArrayLike

from data_pipeline.files import write_text
from data_pipeline.text_files import read_json

NAME = "wandb.json"  # in the working directory: which run to continue
MODES = ("online", "offline", "disabled")


class WandbRun:
    """One run there, however often training is interrupted: its id is kept in ``workdir``.

    The x axis is the training step, "step". After a resumption the steps since the last checkpoint
    are sent again, with the same numbers.

    Args:
        workdir: of the run; the package's own files are in ``workdir/wandb``.
        project: its name there.
        settings: the run's config.
        mode: "online"; "offline", for ``wandb sync`` later; "disabled"; "": what the environment
            variable WANDB_MODE says.

    Raises:
        ImportError: the package is not installed.
        ValueError: an unknown mode; or it does not start, for example without an account's key.
    """

    def __init__(self, workdir: Path, project: str, settings: dict, mode: str = ""):
        if mode and mode not in MODES:
            raise ValueError(f"config.wandb_mode={mode!r} is unknown; give {', '.join(MODES)}")
        how: Any = mode or None
        try:
            import wandb
        except ImportError as error:
            raise ImportError(
                "config.wandb_project needs the package wandb: pip install "
                "'persongen_jax[wandb]', or leave the key empty; metrics.jsonl is written in any "
                "case"
            ) from error
        self._image = wandb.Image
        try:
            self._run: Any = wandb.init(
                project=project,
                id=run_id(workdir),
                name=workdir.name,
                resume="allow",
                dir=str(workdir),
                config=settings,
                mode=how,
                settings=wandb.Settings(console="off", quiet=True),
            )
        except wandb.Error as error:
            raise ValueError(
                f"config.wandb_project={project!r}: Weights & Biases does not start "
                f"({' '.join(str(error).split())[:200]}); run `wandb login`, or give "
                "--config.wandb_mode=offline"
            ) from error
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def scalar(self, name: str, value: float, step: int) -> None:
        self._run.log({"step": step, name: float(value)})

    def scalars(self, group: str, row: dict, step: int) -> None:
        """A row of metrics.jsonl, each number as ``group/name``."""
        named = {f"{group}/{name}": value for name, value in row.items() if name != "step"}
        self._run.log({"step": step, **named})

    def image(self, name: str, image: ArrayLike, step: int) -> None:
        """A picture, uint8 [h, w, 3]."""
        self._run.log({"step": step, name: self._image(np.asarray(image))})

    def close(self) -> None:
        self._run.finish()


def run_id(workdir: Path) -> str:
    """The id of the run in ``workdir``; a new one, which is kept, if it has none yet."""
    path = workdir / NAME
    if path.exists():
        return read_json(path)["id"]
    drawn = secrets.token_hex(4)
    write_text(path, json.dumps({"id": drawn}) + "\n")
    return drawn
