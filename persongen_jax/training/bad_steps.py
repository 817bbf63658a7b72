"""Steps whose loss or gradient is not finite: seen, told, and too many of them end the run."""

import logging
from collections import Counter

import numpy as np

log = logging.getLogger(__name__)

SHOWN = 8  # pictures


class NonFinite(ValueError):
    """Too many steps in a row without a finite loss and gradient."""


class BadSteps:
    """Counts the steps in a row whose update was skipped (train_step.make_train_step).

    A step's outcome is looked at when a later one is under way, so that nothing waits for it.

    Args:
        limit: this many in a row are too many; 0: never.
        in_a_row: the bad steps at the end of what was done before.
        workdir: of the run, for what the user is told.
        pictures_of: a step to the names of its pictures; [] where nobody knows.
    """

    def __init__(self, limit: int, in_a_row=(), workdir=".", pictures_of=lambda step: []):
        self.limit, self.in_a_row, self.workdir = limit, list(in_a_row), workdir
        self.pictures_of = pictures_of
        self._unseen = []

    def keep(self, step: int, skipped):
        """Remember the outcome of ``step``, a number that may still be under way on the device."""
        self._unseen.append((step, skipped))

    def check(self):
        """Look at what was kept, waiting for it if need be.

        Raises:
            NonFinite: ``limit`` of them in a row were bad.
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
                    f"Look at the pictures of these steps{self._named(self.in_a_row)}; or lower "
                    "config.lr_*, set config.clip_norm=1.0 or config.dtype=float32, in another "
                    f"--workdir with --config.start_from={self.workdir}"
                )

    def _named(self, steps) -> str:
        """Their pictures, those first that were in most of these steps; "" where nobody knows."""
        counts = Counter(name for step in steps for name in dict.fromkeys(self.pictures_of(step)))
        names = [name for name, _ in counts.most_common()]
        more = f", and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        return f" ({', '.join(names[:SHOWN])}{more})" if names else ""
