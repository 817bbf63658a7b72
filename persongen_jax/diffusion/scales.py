"""Strengths at run time, by step.

    {"background": 0.5}                                   all steps
    {"identity": [(0.0, 0.3, 0.0), (0.3, 1.0, 0.8)]}      nothing in the first 30 %, then 0.8

Ranges are fractions of the steps, as diffusers' ``control_guidance_start`` and ``_end`` are: of n
steps, step i belongs to (start, end, value) where start <= i / n < end.
"""

import math
from collections.abc import Sequence

import numpy as np

Strength = float | Sequence[tuple[float, float, float]]


def schedule(name: str, strength: Strength, num_steps: int) -> np.ndarray:
    """[num_steps] float32, the factor at each step; 1 at steps that no range covers.

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
    values, covered = np.ones(num_steps, np.float32), 0.0
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


def parse_scales(items: Sequence[str]) -> dict[str, Strength]:
    """Command-line options: NAME=VALUE, or several NAME=VALUE@START-END of one name.

    Raises:
        ValueError: another form, or both forms for one name.
    """
    scales = {}
    for item in items:
        name, _, rest = item.partition("=")
        value, at, steps = rest.partition("@")
        start, dash, end = steps.partition("-")
        try:
            if at and not dash:
                raise ValueError(f"no range in {steps!r}")
            strength = [(float(start), float(end), float(value))] if at else float(value)
        except ValueError as error:
            raise ValueError(
                f"--scale {item}: write NAME=NUMBER, identity=0.8, or with a range of the steps "
                "NAME=NUMBER@START-END, identity=0.8@0.3-1"
            ) from error
        name = name.strip()
        if name in scales and not (at and isinstance(scales[name], list)):
            raise ValueError(f"--scale {item}: {name} has a strength for these steps already")
        scales[name] = scales.get(name, []) + strength if at else strength
    return scales
