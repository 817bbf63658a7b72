"""Detects steps whose loss or gradient is not finite, and ends a run that has too many of them."""

import logging
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from jax.typing import ArrayLike

log = logging.getLogger(__name__)

SHOWN = 8  # images


class NonFinite(ValueError):
    """Too many steps in a row without a finite loss and gradient."""


class BadSteps:
    """Counts the steps in a row whose update was skipped (step.make_train_step).

    The outcome of a step is read while a later step runs, so that nothing waits for it.

    Args:
        limit: raise after this many bad steps in a row; 0: never.
        in_a_row: the bad steps that directly precede the first step of this run.
        workdir: of the run, for error messages.
        pictures_of: maps a step to the names of its images; [] if they are not known.
    """

    def __init__(
        self,
        limit: int,
        in_a_row: Iterable[int] = (),
        workdir: str | Path = ".",
        pictures_of: Callable[[int], Iterable[str]] = lambda step: [],
    ):
        self.limit, self.in_a_row, self.workdir = limit, list(in_a_row), workdir
        self.pictures_of = pictures_of
        self._unseen = []

    def keep(self, step: int, skipped: ArrayLike) -> None:
        """Remember the outcome of ``step``; the device may still be computing it."""
        self._unseen.append((step, skipped))

    def check(self) -> None:
        """Look at the remembered outcomes, waiting for the device if necessary.

        Raises:
            NonFinite: ``limit`` steps in a row were bad.
        """
        unseen, self._unseen = self._unseen, []
        for step, skipped in unseen:
            if not np.asarray(skipped):
                self.in_a_row = []
                continue
            if not self.in_a_row:
                log.warning(
                    "step %d: the loss or the gradient is not finite; its update is skipped%s",
                    step,
                    self._named([step]),
                )
            self.in_a_row.append(step)
            if 0 < self.limit <= len(self.in_a_row):
                raise NonFinite(
                    f"the loss or the gradient was not finite in steps {self.in_a_row[0]} to "
                    f"{step}, {len(self.in_a_row)} in a row (config.max_bad_steps={self.limit}); "
                    f"their updates were skipped, and the checkpoints in {self.workdir} are good. "
                    f"Look at the images of these steps{self._named(self.in_a_row)}; or lower "
                    "config.lr_*, set config.clip_norm=1.0 or config.dtype=float32, in another "
                    f"--workdir with --config.start_from={self.workdir}"
                )

    def _named(self, steps) -> str:
        """The names of their images, the most frequent first; "" if they are not known."""
        counts = Counter(name for step in steps for name in dict.fromkeys(self.pictures_of(step)))
        names = [name for name, _ in counts.most_common()]
        more = f", and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        return f" ({', '.join(names[:SHOWN])}{more})" if names else ""
