"""Where numbers and pictures of a run are shown, next to metrics.jsonl."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from jax.typing import ArrayLike
from ml_collections import ConfigDict

from persongen_jax.parallel import distributed
from persongen_jax.training.logs.tensorboard import EventFile
from persongen_jax.training.logs.weights_and_biases import WandbRun


class Writer(Protocol):
    """Shows what it gets under a name and a step."""

    def scalar(self, name: str, value: float, step: int) -> None: ...

    def scalars(self, group: str, row: dict, step: int) -> None:
        """A row of metrics.jsonl, each number as ``group/name``."""

    def image(self, name: str, image: ArrayLike, step: int) -> None:
        """A picture, uint8 [h, w, 3]."""

    def close(self) -> None: ...


class Writers:
    """Passes everything on to each of ``writers``."""

    def __init__(self, writers: Sequence[Writer]):
        self._writers = writers

    def scalar(self, name: str, value: float, step: int) -> None:
        for writer in self._writers:
            writer.scalar(name, value, step)

    def scalars(self, group: str, row: dict, step: int) -> None:
        """A row of metrics.jsonl, each number as ``group/name``."""
        for writer in self._writers:
            writer.scalars(group, row, step)

    def image(self, name: str, image: ArrayLike, step: int) -> None:
        """A picture, uint8 [h, w, 3]."""
        for writer in self._writers:
            writer.image(name, image, step)

    def close(self) -> None:
        for writer in self._writers:
            writer.close()


def open_writers(
    config: ConfigDict, workdir: Path, folder: Path, start: int, settings: dict
) -> Writers:
    """TensorBoard's events and Weights & Biases, as the config says.

    Args:
        workdir: of the run.
        folder: this process' logs.
        start: the step from which the run goes on.
        settings: the config, for those who show it.
    """
    writers: list[Writer] = []
    if config.tensorboard:
        writers.append(EventFile(folder / "tensorboard", start))
    if config.wandb_project and distributed.is_first():
        writers.append(WandbRun(workdir, config.wandb_project, settings, config.wandb_mode))
    return Writers(writers)
