"""Strengths at run time, by step and by region.

    {"background": 0.5}                                   all steps
    {"identity": [(0.0, 0.3, 0.0), (0.3, 1.0, 0.8)]}      nothing in the first 30 %, then 0.8

Ranges are fractions of the steps, as diffusers' ``control_guidance_start`` and ``_end`` are: of n
steps, step i belongs to (start, end, value) where start <= i / n < end. A region says where in the
image something acts: a mask of any size, stretched over the whole image.
"""

import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from data_pipeline.pictures.reading import load_mask

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
    scales: dict[str, Strength] = {}
    for item in items:
        name, _, rest = item.partition("=")
        value, at, steps = rest.partition("@")
        start, dash, end = steps.partition("-")
        try:
            if at and not dash:
                raise ValueError(f"no range in {steps!r}")
            strength = float(value)
            ranges = [(float(start), float(end), strength)] if at else []
        except ValueError as error:
            raise ValueError(
                f"--scale {item}: write NAME=NUMBER, identity=0.8, or with a range of the steps "
                "NAME=NUMBER@START-END, identity=0.8@0.3-1"
            ) from error
        name = name.strip()
        there = scales.get(name, [])
        if not isinstance(there, list) or (there and not at):
            raise ValueError(f"--scale {item}: {name} has a strength for these steps already")
        scales[name] = [*there, *ranges] if at else strength
    return scales


def region_arrays(
    regions: Sequence[Sequence[Any]], people: Sequence[Sequence[Any]], height: int, width: int
) -> np.ndarray:
    """[prompts, p, height, width] float32 in 0..1; p is the most people of a prompt.

    Places of absent people hold 0.
    """
    out = np.zeros((len(regions), max(map(len, people)), height, width), np.float32)
    for row, masks in enumerate(regions):
        for column, mask in enumerate(masks):
            name = f"region {column + 1} of prompt {row + 1}"
            out[row, column] = to_region(mask, height, width, name)
    return out


def to_region(mask: Any, height: int, width: int, name: str = "a region") -> np.ndarray:
    """A mask of any size, averaged down (or repeated up) to [height, width] float32 in 0..1.

    Args:
        mask: anything that load_mask accepts: a path, a file object, a PIL image (white is 1), an
            array [h, w] bool, float in 0..1, or uint8.
        name: of the region in messages.

    Raises:
        ImageError: another array, or an image that cannot be read.
    """
    from PIL import Image

    mask = load_mask(mask, name)
    if not mask.any():
        warnings.warn(f"{name} is empty (all black): it acts nowhere", stacklevel=2)
    return np.asarray(Image.fromarray(mask).resize((width, height), Image.Resampling.BOX))
