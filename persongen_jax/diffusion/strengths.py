"""How strongly an effect acts at each step: a number, or numbers over ranges of the steps."""

import math
from collections.abc import Sequence

import numpy as np

# A number; or, per range of steps, (start, end, number), where start and end are fractions of all
# steps, as diffusers' control_guidance_start and _end are: of n steps, step i belongs to the range
# where start <= i / n < end.
Strength = float | Sequence[tuple[float, float, float]]


def schedule(name: str, strength: Strength, num_steps: int, usual: float = 1.0) -> np.ndarray:
    """[num_steps] float32, the factor at each step; ``usual`` at steps that no range covers.

    Raises:
        ValueError: not finite, ranges that overlap, or that do not lie in 0..1.
    """
    if np.ndim(strength) == 0 and isinstance(strength, (int, float, np.number, np.ndarray)):
        strength = [(0.0, 1.0, strength)]
    if not isinstance(strength, (list, tuple)):
        raise ValueError(
            f"scales: {name!r} is {strength!r}; give a number, or a list of (start, end, value)"
        )
    fractions = np.arange(num_steps) / num_steps
    values, covered = np.full(num_steps, usual, np.float32), 0.0
    for start, end, value in sorted(map(_numbers(name), strength)):
        if not 0 <= start < end <= 1:
            raise ValueError(
                f"scales: {name!r} has the range {start:g}..{end:g}; give fractions of the steps, "
                "0 <= start < end <= 1"
            )
        if start < covered:
            raise ValueError(f"scales: two ranges of {name!r} overlap before {covered:g}")
        covered = end
        values[(start <= fractions) & (fractions < end)] = value
    return values


def _numbers(name):
    def check(entry):
        try:
            start, end, value = map(float, entry)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"scales: {entry!r} of {name!r}; give a number, or a list of (start, end, value)"
            ) from error
        if not math.isfinite(value):
            raise ValueError(f"scales: {name!r} is {value}; give a finite number")
        return start, end, value

    return check
